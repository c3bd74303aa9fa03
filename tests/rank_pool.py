"""Ranks for tests: worker processes that import torch once per session and then run many test bodies.

A body is a function of (rank, world_size, *args), sent by value. Around it the worker has the default process group
(Gloo, over a store that the parent hosts, so that killing any rank leaves it alive). What runs in the workers is in
rank_worker.py, their processes are in worker_process.py.
"""

import contextlib
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from rank_worker import Report, Task, UnpicklableError, reached, store_address
from worker_process import WorkerProcess, end_processes_of

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

__all__ = ["RankOutcome", "RankPool", "RanksHungError", "Running", "UnpicklableError", "reached", "store_address"]

_TESTS = Path(__file__).resolve().parent
_HOST = "127.0.0.1"
_LOOK_FOR_DEATHS_EVERY_S = 0.5


class RanksHungError(AssertionError):
    """Some ranks did not get there in time; the message holds the stacks of all their threads."""


@dataclass(frozen=True)
class RankOutcome:
    """What became of a body on one rank."""

    value: Any = None
    error: BaseException | None = None
    """What the body raised, with its chain of `__cause__`."""
    traceback: str = ""
    exitcode: int | None = None
    """Set where the process died: the negative signal, or what it exited with."""
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.exitcode is not None:
            return f"died with exit code {self.exitcode}"
        return f"raised\n{self.traceback}" if self.error is not None else "finished"


class Running:
    """A body that is running on some ranks.

    Args:
        workers: One per rank, in order.
        discard: Called with a worker that is dead, or not fit for another body; kills it if it lives.
        store: What the ranks rendezvous through; kept alive as long as this.
    """

    def __init__(
        self, workers: Sequence[WorkerProcess], discard: Callable[[WorkerProcess], None], store: "TCPStore"
    ) -> None:
        self._workers = workers
        self._discard = discard
        self._store = store
        self._outcomes: dict[int, RankOutcome] = {}
        self._reached: set[tuple[int, str]] = set()

    def pid(self, rank: int) -> int:
        """The process id of a rank."""
        return self._workers[rank].process.pid

    def kill(self, rank: int) -> None:
        """Kills the process of a rank, finished or not; returns when it is gone, so that no later body gets it."""
        process = self._workers[rank].process
        process.kill()
        process.wait()

    def finished(self) -> set[int]:
        """The ranks whose outcome is known."""
        return set(self._outcomes)

    def wait_for(self, rank: int, point: str, timeout_s: float = 30) -> None:
        """Waits until the body has called `reached(point)` on that rank.

        Raises:
            AssertionError: The rank finished or died without getting there.
            RanksHungError: Not in time; all ranks that still run are killed.
        """
        deadline = time.monotonic() + timeout_s
        while (rank, point) not in self._reached:
            if rank in self._outcomes:
                raise AssertionError(f"rank {rank} never reached {point!r}: it {self._outcomes[rank]}")
            self._receive(deadline, f"rank {rank} to reach {point!r}")

    def wait(self, timeout_s: float = 60) -> list[RankOutcome]:
        """Waits for all ranks.

        Raises:
            RanksHungError: Not in time; the hung processes are killed and replaced.
        """
        deadline = time.monotonic() + timeout_s
        while len(self._outcomes) < len(self._workers):
            self._receive(deadline, "all ranks to finish")
        return [self._outcomes[rank] for rank in range(len(self._workers))]

    def poll(self, within_s: float = 0.1) -> None:
        """Takes in what ranks have sent, if anything comes in time."""
        pending = self._pending()
        ready = wait([worker.connection for worker in pending.values()], within_s)
        for rank, worker in pending.items():
            if worker.connection in ready:
                self._take_in(rank, worker)
            elif worker.process.poll() is not None and not worker.connection.poll():
                self._died(rank, worker)  # a forked child of the rank may keep its end of the connection open

    def abandon(self) -> None:
        """Kills the ranks that still run, if any."""
        for rank, worker in self._pending().items():
            self._discard(worker)
            self._outcomes[rank] = RankOutcome(exitcode=worker.process.returncode)

    def _pending(self) -> dict[int, WorkerProcess]:
        return {rank: worker for rank, worker in enumerate(self._workers) if rank not in self._outcomes}

    def _receive(self, deadline: float, what: str) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            self._give_up(what)
        self.poll(min(left_s, _LOOK_FOR_DEATHS_EVERY_S))

    def _take_in(self, rank: int, worker: WorkerProcess) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._died(rank, worker)
            return
        if isinstance(message, Report):
            self._outcomes[rank] = _outcome_of(message)
            if not message.is_clean:
                self._discard(worker)
        else:
            self._reached.add((rank, message))

    def _died(self, rank: int, worker: WorkerProcess) -> None:
        self._outcomes[rank] = RankOutcome(exitcode=worker.process.wait())
        self._discard(worker)

    def _give_up(self, what: str) -> None:
        hung = self._pending()
        stacks = {rank: f"hung\n{worker.stack()}" for rank, worker in hung.items()}
        states = _by_rank({**self._outcomes, **stacks})
        self.abandon()
        raise RanksHungError(f"waited in vain for {what}; hung: {sorted(hung)}\n{states}")


class RankPool:
    """Starts workers as they are needed and keeps them. Runs one body at a time."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="rank-pool-")
        self.scratch = Path(self._scratch.name)
        """Everything temporary of the workers is here, and their environment names it."""
        (self.scratch / "tmp").mkdir()
        self._workers: list[WorkerProcess] = []
        self._running: Running | None = None

    def start(self, world_size: int, body: Callable[..., Any], *args: Any, init: bool = True) -> Running:
        """Starts `body(rank, world_size, *args)` on every rank; without `init` there is no process group.

        A body that still runs, because its test failed before it waited for it, is killed first.
        """
        if self._running is not None:
            self._running.abandon()
        workers = list(self._take(world_size))
        store = _host_store()  # imports torch, while the workers do
        with _by_value(body):
            body_and_args = cloudpickle.dumps((body, args))
        for worker in workers:
            worker.wait_until_ready()
        for rank, worker in enumerate(workers):
            task = Task(rank, world_size, (store.host, store.port), init, body_and_args)
            with contextlib.suppress(OSError):  # has just died: its outcome will say so
                worker.connection.send(task)
        self._running = Running(workers, self._discard, store)
        return self._running

    def run(
        self,
        world_size: int,
        body: Callable[..., Any],
        *args: Any,
        timeout_s: float = 60,
        expect_death: Collection[int] = (),
        init: bool = True,
    ) -> list[RankOutcome]:
        """Runs the body on every rank and returns what became of it.

        Raises:
            AssertionError: Other ranks died than those in `expect_death`.
            RanksHungError: Not in time; the hung processes are killed and replaced.
        """
        outcomes = self.start(world_size, body, *args, init=init).wait(timeout_s)
        died = {rank for rank, outcome in enumerate(outcomes) if outcome.exitcode is not None}
        if died != set(expect_death):
            states = _by_rank(dict(enumerate(outcomes)))
            raise AssertionError(f"expected the death of {sorted(expect_death)}, not of {sorted(died)}\n{states}")
        return outcomes

    def values(
        self, world_size: int, body: Callable[..., Any], *args: Any, timeout_s: float = 60, init: bool = True
    ) -> list[Any]:
        """Runs the body on every rank and returns its values; fails with every traceback where a rank failed."""
        outcomes = self.start(world_size, body, *args, init=init).wait(timeout_s)
        failed = {r: o for r, o in enumerate(outcomes) if o.error is not None or o.exitcode is not None}
        if failed:
            raise AssertionError(f"the body failed on {sorted(failed)}\n{_by_rank(failed)}")
        return [outcome.value for outcome in outcomes]

    def prepare(self, world_size: int) -> None:
        """Starts the workers that a body on so many ranks needs, and waits until they have imported everything."""
        for worker in list(self._take(world_size)):
            worker.wait_until_ready()

    def pids(self) -> set[int]:
        """The process ids of the workers, and of what starts them."""
        return {worker.process.pid for worker in self._workers}

    def close(self) -> list[str]:
        """Stops all workers, and returns what bodies left behind: processes (killed now) and temporary files."""
        if self._running is not None:
            self._running.abandon()
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        left = [*end_processes_of(self.scratch), *(str(path) for path in (self.scratch / "tmp").iterdir())]
        self._scratch.cleanup()
        return left

    def _take(self, world_size: int) -> Sequence[WorkerProcess]:
        for worker in [worker for worker in self._workers if worker.process.poll() is not None]:
            self._discard(worker)
        while len(self._workers) < world_size:
            self._workers.append(WorkerProcess(self.scratch))
        return self._workers[:world_size]

    def _discard(self, worker: WorkerProcess) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        worker.kill()


def _host_store() -> "TCPStore":
    """Serves a new store on a free port of the loopback interface.

    On IPv4 alone: by itself a TCPStore listens on IPv6 too, and then asks DNS for the name of ::ffff:127.0.0.1 for
    every client that connects, which takes 5 s where no name server answers.
    """
    from torch._C._distributed_c10d import TCPStore

    listener = socket.create_server((_HOST, 0))
    port = listener.getsockname()[1]
    return TCPStore(_HOST, port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())


def _by_rank(states: Mapping[int, object]) -> str:
    return "\n".join(f"--- rank {rank} {state}" for rank, state in sorted(states.items()))


@contextlib.contextmanager
def _by_value(body: Callable[..., Any]) -> Iterator[None]:
    """Has cloudpickle send what the body's test module defines: workers cannot import that module."""
    module = sys.modules[body.__module__]
    if not Path(getattr(module, "__file__", None) or "/").is_relative_to(_TESTS):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _outcome_of(report: Report) -> RankOutcome:
    if report.error is not None:
        return RankOutcome(error=report.error.load(), traceback=report.traceback, seconds=report.seconds)
    try:
        return RankOutcome(cloudpickle.loads(report.value), seconds=report.seconds)
    except Exception as exc:
        return RankOutcome(error=exc, traceback=traceback.format_exc(), seconds=report.seconds)
