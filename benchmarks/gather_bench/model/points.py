"""The points to which the model is fitted: from the rows of reports, those that it knows the work of."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from gather_bench.bench.results import Environment, Report, Row
from gather_bench.model.work import Job, Work, all_gather_list, work_of
from gather_transports.shm_region import LENT_FROM_NBYTES

SEED = "all_gather_list"
_EVEN = 0.9
_GAIN_OF_THREADS = 1.25


@dataclass(frozen=True)
class Way:
    """What a point is of; all points of a codec are fitted together, as decoding costs the same over any transport."""

    codec: str
    """`all_gather_list` for that peer, which has none."""
    transport: str

    def work(self, job: Job) -> Work:
        """Counts what one call takes.

        Raises:
            ValueError: The model does not know the transport.
        """
        count = all_gather_list if self.codec == SEED else work_of(self.transport)
        if count is None:
            raise ValueError(f"the model does not know the transport {self.transport!r}")
        return count(job)

    def __str__(self) -> str:
        return SEED if self.codec == SEED else f"{self.codec}, {self.transport}"


@dataclass(frozen=True)
class Measured:
    """A way and a job, and what a call takes there."""

    way: Way
    job: Job
    seconds: float
    """The median over all rounds of all reports."""


def points_of(reports: Iterable[Report]) -> list[Measured]:
    """Takes what was measured of the ways that the model knows; the same point in several reports is one."""
    rounds: dict[tuple[Way, Job], list[float]] = {}
    for report in reports:
        for row in report.rows:
            way = _way(row)
            if way is not None and row.seconds is not None and _is_even(row):
                rounds.setdefault((way, _job(row, report)), []).extend(row.seconds.rounds)
    return [Measured(way, job, median(seconds)) for (way, job), seconds in rounds.items()]


def _way(row: Row) -> Way | None:
    """None too for `shm+gloo` on one host: it is `shm` there, or GATHER_HOST_ID makes more of it than the row says.

    And for what `shm` lends: what that costs is up to who reads it.
    """
    if row.way == SEED:
        return Way(SEED, "gloo")
    transport = row.transport_used
    if transport == "shm" and (row.encoded_nbytes or 0) >= LENT_FROM_NBYTES:
        return None
    if row.codec is None or transport is None or (transport == "shm+gloo" and row.hosts == 1):
        return None
    if work_of(transport) is None:
        return None
    return Way(row.codec, transport)


def _is_even(row: Row) -> bool:
    """Whether all ranks hand in about as much; what skewed sizes cost is not modelled."""
    if row.encoded_nbytes is None or row.received_nbytes is None:
        return False
    return row.received_nbytes >= _EVEN * row.world_size * row.encoded_nbytes


def _job(row: Row, report: Report) -> Job:
    """A peer's slots are as large as what it sends."""
    nbytes = row.encoded_nbytes or 0
    slot_nbytes = nbytes if row.codec is None else report.options.slot_nbytes
    return Job(row.world_size, row.hosts, cores_of(report.environment), nbytes, slot_nbytes)


def cores_of(environment: Environment) -> float:
    """How many cores' worth of work the CPUs do at once. Two threads of a core do a quarter more than one of them.

    (16 to 28 % more in what Intel measured: Marr et al., Hyper-Threading Technology Architecture and Microarchitecture,
    2002; what is waited for here, memory, gains most.)
    """
    threads = environment.threads_per_core or 1
    return environment.cpu_count if threads == 1 else environment.cpu_count / threads * _GAIN_OF_THREADS
