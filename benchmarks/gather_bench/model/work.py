"""How much work one all_gather is, by transport: counts of terms, pure functions of ranks, hosts, cores and bytes.

The counts are those of the code: `gloo_choice.py`, `gloo_exchanges.py`, `hierarchical.py`. Work of processors that all
ranks of a host do at once takes L / C times as long where L ranks share C cores, and as long as one rank's otherwise.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from gather_bench.model.terms import Term
from gather_core.memory import align
from gather_core.slot import HEADER_NBYTES
from gather_core.spec import parse_spec
from gather_transports.gloo_choice import CHUNK_NBYTES, Choice, WayName
from gather_transports.host_blocks import block_nbytes, chunk_nbytes, longest_slot

Work = Mapping[Term, float]


@dataclass(frozen=True)
class Job:
    """Ranks on hosts, the same number on each, and what each hands in."""

    world_size: int
    hosts: int
    cores: float
    """Of each host, for these ranks."""
    nbytes: int
    """Encoded, per rank."""
    slot_nbytes: int

    @property
    def ranks_per_host(self) -> int:
        """On the host with most."""
        return -(-self.world_size // self.hosts)

    @property
    def share(self) -> float:
        """How many times as long a rank's own work takes, as the ranks of its host share cores."""
        return max(1.0, self.ranks_per_host / self.cores)


def flat_gloo(job: Job, **bounds: int) -> Work:
    """`gloo`: round 1 by the table, and a direct round 2 where the payload does not fit in that.

    Args:
        job: Which.
        bounds: Options of the transport that change the table.
    """
    if job.world_size == 1:
        return codec(job)
    return add(codec(job), _gloo_rounds(job, Choice(job.world_size, job.hosts, **bounds)))


def shm(job: Job) -> Work:
    """`shm`: one exchange of any size."""
    return add(codec(job), _shm_exchange(job))


def hierarchical(job: Job) -> Work:
    """`shm+gloo`: an exchange inside each host, one of blocks between the leaders, and one inside again."""
    if job.hosts == 1:
        return shm(job)
    ranks = job.ranks_per_host
    between = replace(job, world_size=job.hosts)
    choice = Choice(job.hosts, job.hosts)
    block_slot = align(block_nbytes(ranks, job.slot_nbytes))
    way, carried = choice.round_1(block_slot)
    filled = job.nbytes + HEADER_NBYTES
    if filled <= max(longest_slot(carried, ranks), job.slot_nbytes):
        return add(codec(job), _block_round(job, between, way, filled))
    turns = -(-ranks * job.nbytes // chunk_nbytes(job.hosts))
    return add(
        codec(job),
        _block_round(job, between, way, HEADER_NBYTES),
        {Term.ENCODED_BYTE: job.nbytes * job.share},  # into the host's shared memory; what others send arrives in it
        _gloo_round(between, "direct", ranks * job.nbytes, turns),
        _shm_exchange(job, 2 * turns),
    )


def all_gather_list(job: Job) -> Work:
    """DPR's: slots of `slot_nbytes` (there: `max_size`) are all-reduced in a ring.

    Its bytes are dear, as each is an item of a list of ints on its way in and out: it is fitted by itself.
    """
    steps = 2 * (job.world_size - 1)
    return {
        Term.CALL: job.share,
        Term.OBJECT: job.world_size * job.share,
        Term.ENCODED_BYTE: job.nbytes * job.share,
        Term.DECODED_BYTE: job.world_size * job.nbytes * job.share,
        Term.STEP: steps * job.share,
        Term.WIRE_BYTE: steps * job.slot_nbytes * job.share,
        **_network(job, hops=steps, nbytes=steps * job.slot_nbytes),
    }


def codec(job: Job) -> Work:
    """What a Gatherer does whatever the transport."""
    return {
        Term.CALL: job.share,
        Term.ENCODED_BYTE: job.nbytes * job.share,
        Term.OBJECT: job.world_size * job.share,
        Term.DECODED_BYTE: job.world_size * job.nbytes * job.share,
    }


def add(*works: Work) -> Work:
    """Sums them term by term."""
    total: defaultdict[Term, float] = defaultdict(float)
    for work in works:
        for term, count in work.items():
            total[term] += count
    return total


def _gloo_rounds(job: Job, choice: Choice) -> Work:
    way, carried = choice.round_1(job.slot_nbytes)
    filled = job.nbytes + HEADER_NBYTES
    if filled <= carried:
        return _gloo_round(job, way, filled)
    chunks = -(-job.nbytes // CHUNK_NBYTES)
    return add(_gloo_round(job, way, HEADER_NBYTES), _gloo_round(job, "direct", job.nbytes, chunks))


def _gloo_round(job: Job, way: WayName, nbytes: int, turns: int = 1) -> Work:
    """One exchange, of so many bytes of each rank.

    The hub takes part in every message, with as much work as all others together: with one core in all, that is twice
    the time. In both other ways all ranks do the same.
    """
    peers, away = job.world_size - 1, job.world_size - job.ranks_per_host
    if way == "hub":
        share, hops, moved = max(1.0, 2 / (job.hosts * job.cores)), 2, peers * (1 + job.world_size) * nbytes
        leaving = away * job.world_size * nbytes
    else:
        share, hops, moved = job.share, 1, 2 * peers * nbytes
        leaving = job.ranks_per_host * away * nbytes
    return {
        Term.HOP: hops * turns * job.share,
        Term.MESSAGE: 2 * peers * turns * share,
        Term.WIRE_BYTE: moved * share,
        **_network(job, hops * turns, leaving),
    }


def _network(job: Job, hops: int, nbytes: float) -> Work:
    return {Term.NETWORK_HOP: hops, Term.NETWORK_BYTE: nbytes} if job.hosts > 1 else {}


def _shm_exchange(job: Job, turns: int = 1) -> Work:
    """A rank that has a core of its own spins, which costs next to nothing; else it sleeps for the last to come."""
    sleeps = job.ranks_per_host > job.cores
    return {Term.WAKE: turns * job.share} if sleeps else {}


def _block_round(job: Job, between: Job, way: WayName, filled: int) -> Work:
    """Round 1: the leader copies its host's slots into its block, and those of all hosts to where its ranks read."""
    copied = (job.ranks_per_host + job.world_size) * filled
    return add(
        {Term.ENCODED_BYTE: copied},
        _gloo_round(between, way, block_nbytes(job.ranks_per_host, filled)),
        _shm_exchange(job, 2),
    )


def work_of(transport: str) -> Callable[[Job], Work] | None:
    """Returns what counts the work of a gather over this transport, given as a spec; None where the model has none.

    Gloo with other bounds of its table is Gloo on another way: that tells what a message costs from what a hop does.
    """
    part, *others = parse_spec(transport)
    if part.name == "gloo" and not others and part.options.keys() <= _BOUNDS:
        return partial(flat_gloo, **part.options)
    return _WORK.get(transport)


_BOUNDS = {"hub_up_to_nbytes", "all_to_all_up_to_nbytes"}
_WORK: Mapping[str, Callable[[Job], Work]] = {"shm": shm, "shm+gloo": hierarchical}
