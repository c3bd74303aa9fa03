"""What a run has measured, as values and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import quantiles
from typing import Any, Literal, Self

from gather_bench.bench.damages import damages
from gather_bench.bench.options import Options

SCHEMA_VERSION = 2
"""Goes up when a field changes its meaning or goes away; not when one is added."""

BASELINE = "torch_all_gather_object"
"""The way to which all others of a payload are compared."""

WITHOUT_COLLECTIVE = frozenset({"raw_copy"})
"""Peers that exchange nothing while the clock runs."""

Status = Literal["measured", "unavailable", "refused", "failed", "wrong"]
StartedBy = Literal["local", "torchrun", "mpiexec", "srun"]


@dataclass(frozen=True)
class Environment:
    """Where the run took place, without naming any machine."""

    gather_core: str
    torch: str
    python: str
    platform: str
    cpu_model: str
    """Of rank 0's host, as the system calls it."""
    cpu_count: int
    """CPUs that rank 0 may use."""
    world_sizes: tuple[int, ...]
    """In the order in which they were measured; one, but for local workers."""
    hosts: int
    backend: str
    """Of the job's default group."""
    launcher: StartedBy
    """What started the ranks; `local`: the command itself."""
    date: str
    """The day of the run, such as 2025-01-31."""
    threads_per_core: int | None = None
    """How many of the CPUs share a core, as the system says on rank 0; None where it does not."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call on the slowest rank, over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: tuple[float, ...]
    """In the order in which they were run."""
    launches: tuple[int, ...] = ()
    """How many rounds each launch of the workers has run, in order; empty, as in older files: one has run all."""

    @classmethod
    def of(cls, rounds: Sequence[float], launches: Sequence[int] = ()) -> Self:
        """Sums up at least one round."""
        launches = tuple(launches) or (len(rounds),)
        if len(rounds) == 1:
            return cls(rounds[0], rounds[0], rounds[0], tuple(rounds), launches)
        lower, middle, upper = quantiles(rounds, n=4, method="inclusive")
        return cls(middle, lower, upper, tuple(rounds), launches)


@dataclass(frozen=True)
class Split:
    """Where the time of a call goes, in seconds: means over the ranks, of which the median over some calls is taken.

    Measured apart from `Row.seconds`, in calls in a row, which last equally long on all ranks: what differs between
    ranks is what they spend the time with, and the slow ones' encode is the others' wait.
    """

    encode: float
    """Until the transport is entered: the codec's encode, checksums, writing into the slot."""
    wait: float | None
    """From there until the last rank has entered it too. None where the ranks are on several hosts, whose clocks
    cannot be compared: there it is a part of `transfer`."""
    transfer: float
    """The rest of the time inside the transport, in both rounds."""
    decode: float
    """All the rest: checks, memory for the results, the codec's decode of every rank's object."""


@dataclass(frozen=True)
class Row:
    """One way to gather one payload between so many ranks: measured, or why not."""

    payload: str
    payload_nbytes: int | None
    """Of the object as a plain pickle, on the rank with the largest; None where pickle cannot on some rank."""
    world_size: int
    hosts: int
    way: str
    """`gatherer`, or the name of a peer."""
    codec: str | None
    """None for a peer."""
    transport: str | None
    transport_used: str | None
    """What `auto` has chosen; None where none could be opened. Of a peer, where the job has several backends: the one
    that carries it, which is that for the CPU."""
    status: Status
    """`unavailable`: cannot be used here. `refused`: this payload cannot be encoded. `failed`: it raised, or the
    payload could not be made. `wrong`: the objects that came out are not those that were handed in. All but the first
    are about this payload alone."""
    reason: str | None = None
    encoded_nbytes: int | None = None
    """What a rank hands to the transport or collective, on the rank with the most."""
    received_nbytes: int | None = None
    """What all ranks together hand over, and so each of them gets per call; its own part is among it."""
    fitting_slot_nbytes: int | None = None
    """The least slot in which every rank's payload fits, so that one exchange is enough; None for a peer."""
    gather_rounds: int | None = None
    """Rounds per call, 1 or 2; None for a peer."""
    calls: int | None = None
    """Calls behind one barrier."""
    seconds: Timing | None = None
    times_faster: float | None = None
    """The median of the baseline over this one's; None where one of them was not measured."""
    split: Split | None = None
    """None for a peer."""
    peak_nbytes: int | None = None
    """How much more memory than before is resident at the peak of one call, on the rank with the most. What the way
    keeps between calls was there before. None where the system does not tell (other than Linux)."""

    @property
    def label(self) -> str:
        """Names the way for people."""
        if self.codec is None:
            return self.way if self.transport_used is None else f"{self.way} ({self.transport_used})"
        chosen = f" ({self.transport_used})" if self.transport_used not in (None, self.transport) else ""
        return f"{self.codec}, {self.transport}{chosen}"


@dataclass(frozen=True)
class Recommendation:
    """The codec and transport that were fastest on all payloads and world sizes together, each counting alike."""

    codec: str
    transport: str
    slot_nbytes: int
    slowdown: float
    """Geometric mean, over payloads and world sizes, of its median over that of the fastest Gatherer there; 1 where it
    was the fastest everywhere."""
    data_codec: str | None = None
    """The best codec that builds data only, where the recommended one is none and this one is not much slower."""
    data_slowdown: float | None = None
    """Of that codec over the same transport, likewise."""
    ties: tuple[str, ...] = ()
    """Other ways that were as fast as can be told, such as "msgpack over shm": their quartiles overlap everywhere."""


@dataclass(frozen=True)
class Report:
    """All of one run."""

    environment: Environment
    options: Options
    rows: tuple[Row, ...]
    """By world size, then by payload, then by way, in the order of the options, the peers last."""
    recommendation: Recommendation | None = None
    """None where no way has carried every payload."""

    @property
    def is_sound(self) -> bool:
        """Whether something was measured, and whatever was tried gave the right objects."""
        return self.has_measured and not any(row.status in ("failed", "wrong") for row in self.rows)

    @property
    def has_measured(self) -> bool:
        """Whether any row was measured."""
        return any(row.status == "measured" for row in self.rows)

    def joined_by(self, later: "Report") -> "Report":
        """Returns both in one; `later` is of the same options and job, with other world sizes."""
        world_sizes = self.environment.world_sizes + later.environment.world_sizes
        return Report(replace(self.environment, world_sizes=world_sizes), self.options, self.rows + later.rows)

    def to_json(self) -> str:
        """Writes it as JSON; docs/benchmarks.md describes the layout."""
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` has written; fields that it does not know are left out.

        Raises:
            ValueError: It is no report, one of another schema version, or damaged; the message is one line.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            document = json.loads(text)
        except RecursionError as exc:
            raise ValueError("this is no report: it is nested too deeply") from exc
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"this is no report of schema version {SCHEMA_VERSION}: schema_version is {version!r}")
        try:
            report = TypeAdapter(cls).validate_python(document)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
            raise ValueError(f"the report is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from exc
        if damage := next(damages(report), None):
            raise ValueError(f"the report is damaged: {damage}")
        return report
