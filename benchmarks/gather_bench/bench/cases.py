"""What is measured: every codec over every transport, and the peers; each is opened before the first is timed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch.distributed as dist

from gather_bench.bench.agreement import agree
from gather_bench.bench.mpi_ways import MPI_PEERS, mpi_problem
from gather_bench.bench.options import Options
from gather_bench.bench.peer_ways import PEERS
from gather_bench.bench.results import WITHOUT_COLLECTIVE, StartedBy
from gather_bench.bench.ways import GathererWay, ReadyWay
from gather_bench.bench.wording import count
from gather_core import Gatherer, GatherError, SetupError

GATHERER = "gatherer"


@dataclass(frozen=True)
class Case:
    """A way to gather whatever payload, or why it cannot be used here."""

    way: str
    """`gatherer`, or the name of a peer."""
    make_ready: Callable[[Any], ReadyWay] | None
    """On one rank alone: takes this rank's object, raises where it refuses it. None: the case is unavailable."""
    codec: str | None = None
    transport: str | None = None
    transport_used: str | None = None
    unavailable: str | None = None
    """Why; the same on every rank."""


@contextmanager
def opened_cases(options: Options, started_by: StartedBy) -> Iterator[list[Case]]:
    """(all ranks) Opens a Gatherer for each pair of codec and transport, and closes them again."""
    with ExitStack() as stack:
        pairs = product(options.codecs, options.transports)
        cases = [_open(codec, transport, options.slot_nbytes, stack) for codec, transport in pairs]
        if options.peers:
            cases += [*peer_cases(), *mpi_cases(started_by)]
        yield cases


def _open(codec: str, transport: str, slot_nbytes: int, stack: ExitStack) -> Case:
    """(all ranks) A Gatherer that does not open on some rank is an unavailable case on all of them."""
    unavailable = partial(Case, GATHERER, None, codec, transport)
    try:
        gatherer = stack.enter_context(Gatherer(codec, transport, slot_nbytes=slot_nbytes))
    except (GatherError, TypeError, ValueError) as exc:
        return unavailable(unavailable=agree(_own_failure(exc)) or str(exc))
    if problem := agree(_not_the_job(gatherer)):
        return unavailable(unavailable=problem)
    return Case(GATHERER, partial(GathererWay, gatherer), codec, transport, gatherer.transport.spec)


def peer_cases() -> list[Case]:
    """(all ranks) What the Gatherers are compared with."""
    return [Case(name, make_ready, transport_used=_backend_of(name)) for name, make_ready in PEERS.items()]


def mpi_cases(started_by: StartedBy) -> list[Case]:
    """(all ranks) mpi4py's ways, where the launcher is one that starts jobs of MPI's; else they cannot be expected."""
    if started_by not in ("mpiexec", "srun"):
        return []
    problem = agree(mpi_problem(dist.get_world_size()))
    return [Case(name, None if problem else ready, unavailable=problem) for name, ready in MPI_PEERS.items()]


def _backend_of(peer: str) -> str | None:
    """What carries a peer, whose objects are in CPU memory; None where the job has but one backend anyway."""
    backends = dict(part.split(":") for part in dist.get_backend_config().split(","))
    return backends["cpu"] if len(set(backends.values())) > 1 and peer not in WITHOUT_COLLECTIVE else None


def _own_failure(exc: Exception) -> str | None:
    """What failed on this rank, if it is one of those at fault, without the layers that told the others."""
    if not isinstance(exc, SetupError):
        return str(exc)
    if isinstance(exc.__cause__, SetupError):
        return "; ".join(exc.__cause__.failures.values())
    return str(exc.__cause__) if exc.__cause__ else None


def _not_the_job(gatherer: Gatherer) -> str | None:
    """Why the Gatherer does not span the job, which that of a transport with groups of its own may not."""
    world_size = dist.get_world_size()
    if gatherer.world_size == world_size:
        return None
    return f"it connects {gatherer.world_size} of the job's {world_size} ranks"


def titles(cases: Sequence[Case]) -> str:
    """Counts the cases for people: "2 Gatherers and 4 peers"."""
    ours = sum(case.way == GATHERER for case in cases)
    return f"{count(ours, 'Gatherer')} and {count(len(cases) - ours, 'peer')}"
