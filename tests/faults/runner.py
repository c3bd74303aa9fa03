"""Runs a case over a transport, and says what is wrong with what the ranks made of it."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from faults.case import Case
from faults.performance import perform, perform_in_threads
from faults.scene import VICTIM, WORLD_SIZE, fault_time
from faults.seen import Process, Seen
from leftovers import shared_memory, still_there
from mpi_pool import MpiPool, missing
from rank_pool import RankOutcome, RankPool, RanksHungError
from worker_process import processes_of

HANG_S = 60.0
"""More than any case takes, Gatherers' timeouts included."""
_SEMAPHORE = "sem."


@dataclass(frozen=True)
class Left:
    """What a case has left behind, by name; all empty where it has left nothing."""

    processes: Sequence[str] = ()
    threads: Sequence[str] = ()
    descriptors: Sequence[str] = ()
    shared_memory: Sequence[str] = ()
    semaphores: Sequence[str] = ()
    files: Sequence[str] = ()

    def items(self) -> list[tuple[str, Sequence[str]]]:
        """Kinds and what there is of each."""
        return list(vars(self).items())


KINDS = tuple(kind for kind, _ in Left().items())
_OF_SURVIVORS = ("threads", "descriptors")


@dataclass(frozen=True)
class Row:
    """What came of one case over one transport."""

    number: int
    name: str
    transport: str
    survivors: str
    """What the survivors raised, by class."""
    seconds: float | None
    """From the fault to the last survivor's error."""
    left: Left = field(default_factory=Left)
    problems: Sequence[str] = ()
    counted: Sequence[str] = KINDS
    """What has been looked for that could be left."""


class Runner:
    """Ranks for all transports, for the `with` block.

    Args:
        pool: Whose processes are the ranks; None: some of its own.
        hang_s: How long a case may take; more than Gatherers' timeouts.
        patience_s: How long what ranks have given up may take to go.
    """

    def __init__(self, pool: RankPool | None = None, *, hang_s: float = HANG_S, patience_s: float = 6.0) -> None:
        self._hang_s = hang_s
        self._patience_s = patience_s
        self._pool = pool or RankPool()
        self._pools = [self._pool] if pool is None else []
        """Those to close."""
        self._mpi_pool: MpiPool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        while self._pools:
            self._pools.pop().close()

    def run(self, case: Case, transport: str) -> Row:
        """Runs one case; never raises for what ranks do."""
        if transport == "mpi" and (reason := missing()):
            return Row(case.number, case.name, transport, f"not run: {reason}", None)
        pool = self._pool_for(transport)
        pool.prepare(1 if transport == "threads" else WORLD_SIZE)
        names = shared_memory()
        with TemporaryDirectory(prefix="case-", dir=pool.scratch) as name:
            folder = Path(name)
            started_s = time.monotonic()
            try:
                outcomes = self._perform(pool, case, transport, folder)
            except RanksHungError as exc:
                return Row(case.number, case.name, transport, "hangs", None, Left(), [f"hangs: {exc}"])
            begun_s = fault_time(folder) or started_s
        left = self._left(pool, outcomes, names)
        seen = [seen for outcome in outcomes if isinstance(outcome.value, Process) for seen in outcome.value.seen]
        problems = [*_deaths(case, transport, outcomes), *_judged(case, seen, begun_s), *_named(left)]
        survivors = [one for one in seen if one.rank != VICTIM]
        seconds = max((one.at_s for one in survivors), default=begun_s) - begun_s if survivors else None
        counted = [kind for kind in KINDS if survivors or kind not in _OF_SURVIVORS]
        return Row(case.number, case.name, transport, _summary(survivors, transport), seconds, left, problems, counted)

    def _pool_for(self, transport: str) -> RankPool:
        if transport != "mpi":
            return self._pool
        if self._mpi_pool is None:
            self._mpi_pool = MpiPool(WORLD_SIZE)
            self._pools.append(self._mpi_pool)
        return self._mpi_pool

    def _perform(self, pool: RankPool, case: Case, transport: str, folder: Path) -> list[RankOutcome]:
        if transport == "threads":
            running = pool.start(1, perform_in_threads, case, folder, self._patience_s, init=False)
        else:
            has_group = transport != "all_gather_object"
            running = pool.start(WORLD_SIZE, perform, case, transport, folder, self._patience_s, init=has_group)
        return running.wait(self._hang_s)

    def _left(self, pool: RankPool, outcomes: Sequence[RankOutcome], names_before: set[str]) -> Left:
        lasting = [outcome.value.left for outcome in outcomes if isinstance(outcome.value, Process)]
        names = still_there(shared_memory, names_before, self._patience_s)

        def strangers() -> set[str]:
            return {str(pid) for pid in processes_of(pool.scratch) - pool.pids()}

        def files() -> set[str]:
            return set(os.listdir(pool.scratch / "tmp"))

        return Left(
            processes=sorted(still_there(strangers, set(), self._patience_s)),
            threads=[kind for left in lasting for kind in left.threads.elements()],
            descriptors=[kind for left in lasting for kind in left.descriptors.elements()],
            shared_memory=sorted(name for name in names if not name.startswith(_SEMAPHORE)),
            semaphores=sorted(name for name in names if name.startswith(_SEMAPHORE)),
            files=sorted(still_there(files, set(), self._patience_s)),
        )


def _deaths(case: Case, transport: str, outcomes: Sequence[RankOutcome]) -> list[str]:
    """Who died and should not have, or the other way round; and what broke the case itself."""
    if transport == "threads":
        return [str(outcome) for outcome in outcomes if outcome.value is None]
    died = [rank for rank, outcome in enumerate(outcomes) if outcome.exitcode is not None]
    broken = [f"rank {rank} {outcome}" for rank, outcome in enumerate(outcomes) if outcome.error is not None]
    return broken + ([] if died == [*case.dies] else [f"ranks {died} ended, and not {[*case.dies]}"])


def _judged(case: Case, seen: Sequence[Seen], begun_s: float) -> list[str]:
    return [problem for one in seen for problem in _judged_one(case, one, begun_s)]


def _judged_one(case: Case, seen: Seen, begun_s: float) -> list[str]:
    problems = []
    expected = case.errors_of(seen.rank)
    if seen.error not in (expected or ("",)):
        problems.append(
            f"rank {seen.rank}: {seen.error or 'nothing'} instead of {' or '.join(expected) or 'nothing'}: {seen.text}"
        )
    elif seen.rank != VICTIM and seen.error and not set(case.named) <= set(seen.named):
        problems.append(f"rank {seen.rank} names {[*seen.named]} and not {[*case.named]}: {seen.text}")
    if seen.afterwards not in (case.afterwards, *(["none"] if seen.rank == VICTIM else [])):
        problems.append(f"rank {seen.rank}: afterwards: {seen.afterwards} instead of {case.afterwards}")
    if seen.rank != VICTIM and seen.at_s - begun_s > case.within_s:
        problems.append(f"rank {seen.rank}: after {seen.at_s - begun_s:.1f} s instead of {case.within_s:.1f} s")
    return problems


def _named(left: Left) -> list[str]:
    return [f"left behind: {kind} {', '.join(there)}" for kind, there in left.items() if there]


def _summary(survivors: Sequence[Seen], transport: str) -> str:
    if not survivors:
        return "mpiexec ends the job" if transport == "mpi" else "(nobody)"
    return ", ".join(sorted({one.error or "none" for one in survivors}))
