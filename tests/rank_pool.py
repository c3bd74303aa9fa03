"""Ranks for tests: worker processes that import torch once per session and then run many test bodies.

A body is a function of (rank, world_size, *args), sent by value. Around it the worker has the default process group
(Gloo, over a store that the parent hosts, so that killing any rank leaves it alive).
"""

import contextlib
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle

_ROOT = Path(__file__).resolve().parent.parent
_SOURCE_ROOTS = [str(_ROOT / name) for name in ("", "codecs", "transports", "benchmarks", "tests")]
_CLEAN_UP_WITHIN_S = 10.0


class RanksHungError(AssertionError):
    """Some ranks did not finish in time; the message holds the stacks of all their threads."""


@dataclass
class RankOutcome:
    """What became of a body on one rank."""

    value: Any = None
    error: Any = None
    """The exception; on its way here a list of it and its causes."""
    traceback: str = ""
    exitcode: int | None = None
    """Set where the process died: the negative signal, or what it exited with."""
    seconds: float = 0.0


class _Worker:
    """The parent's end of one process."""

    def __init__(self, scratch: Path) -> None:
        ours, theirs = socket.socketpair()
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_SOURCE_ROOTS)}
        self.stacks = scratch / f"stacks-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "rank_pool", str(theirs.fileno()), str(self.stacks)]
        self.process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()])
        theirs.close()
        self.connection = Connection(ours.detach())
        self.reached: set[str] = set()

    def stop(self) -> None:
        self.connection.close()
        try:
            self.process.wait(_CLEAN_UP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def stack(self) -> str:
        """The stacks of the process's threads, as it writes them on SIGUSR1."""
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and not (self.stacks.exists() and self.stacks.stat().st_size):
            time.sleep(0.02)
        return self.stacks.read_text() if self.stacks.exists() else "(no stack)"


class Running:
    """A body that is running on some ranks."""

    def __init__(self, workers: Sequence[_Worker], discard: Callable[[_Worker], None], store: Any) -> None:
        self._workers = workers
        self._discard = discard
        self._store = store
        self._outcomes: dict[int, RankOutcome] = {}

    def pid(self, rank: int) -> int:
        """The process id of a rank."""
        return self._workers[rank].process.pid

    def wait_for(self, rank: int, point: str, timeout_s: float = 30) -> None:
        """Waits until the body has called `reached(point)` on that rank."""
        deadline = time.monotonic() + timeout_s
        while point not in self._workers[rank].reached:
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

    def finished(self) -> set[int]:
        """The ranks whose outcome is known."""
        return set(self._outcomes)

    def poll(self, within_s: float = 0.1) -> None:
        """Takes in what ranks have sent, if anything comes in time."""
        pending = [w.connection for r, w in enumerate(self._workers) if r not in self._outcomes]
        if wait(pending, within_s):
            self._receive(time.monotonic() + within_s, "a rank")

    def _receive(self, deadline: float, what: str) -> None:
        pending = {w.connection: r for r, w in enumerate(self._workers) if r not in self._outcomes}
        ready = wait(list(pending), max(deadline - time.monotonic(), 0))
        if not ready:
            self._give_up(what)
        for connection in ready:
            rank = pending[connection]  # type: ignore[index]
            try:
                kind, content = cloudpickle.loads(self._workers[rank].connection.recv_bytes())
            except (EOFError, OSError):
                code = self._workers[rank].process.wait()
                self._outcomes[rank] = RankOutcome(exitcode=code)
                self._discard(self._workers[rank])
                continue
            if kind == "reached":
                self._workers[rank].reached.add(content)
            else:
                self._outcomes[rank] = _restore(content)

    def _give_up(self, what: str) -> None:
        hung = {rank: worker for rank, worker in enumerate(self._workers) if rank not in self._outcomes}
        stacks = "\n".join(f"--- rank {rank}\n{worker.stack()}" for rank, worker in hung.items())
        for worker in hung.values():
            self._discard(worker)
        raise RanksHungError(f"waited in vain for {what}; hung: {sorted(hung)}\n{stacks}")


class RankPool:
    """Starts workers as they are needed and keeps them."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="rank-pool-")
        self._workers: list[_Worker] = []

    def start(self, world_size: int, body: Callable[..., Any], *args: Any, init: bool = True) -> Running:
        """Starts `body(rank, world_size, *args)` on every rank; without `init` there is no process group."""
        from torch._C._distributed_c10d import TCPStore

        while len(self._workers) < world_size:
            self._workers.append(_Worker(Path(self._scratch.name)))
        workers = self._workers[:world_size]
        store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        module = sys.modules[body.__module__]
        cloudpickle.register_pickle_by_value(module)
        for rank, worker in enumerate(workers):
            worker.reached.clear()
            worker.connection.send_bytes(
                cloudpickle.dumps((body, rank, world_size, args, store.port if init else None))
            )
        cloudpickle.unregister_pickle_by_value(module)
        return Running(workers, self._discard, store)

    def run(
        self, world_size: int, body: Callable[..., Any], *args: Any, timeout_s: float = 60, init: bool = True
    ) -> list[RankOutcome]:
        """Runs the body on every rank and returns what became of it."""
        return self.start(world_size, body, *args, init=init).wait(timeout_s)

    def values(self, world_size: int, body: Callable[..., Any], *args: Any, timeout_s: float = 60) -> list[Any]:
        """Runs the body on every rank and returns its values; fails with every traceback where a rank failed."""
        outcomes = self.run(world_size, body, *args, timeout_s=timeout_s)
        failed = [
            f"--- rank {rank} (exit code {outcome.exitcode})\n{outcome.traceback}"
            for rank, outcome in enumerate(outcomes)
            if outcome.error is not None or outcome.exitcode is not None
        ]
        if failed:
            raise AssertionError("\n".join(failed))
        return [outcome.value for outcome in outcomes]

    def close(self) -> None:
        """Stops all workers."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        self._scratch.cleanup()

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()


_to_parent: Connection | None = None


def reached(point: str) -> None:
    """Called in a body: tells the test that this rank is here."""
    if _to_parent is not None:
        _to_parent.send_bytes(cloudpickle.dumps(("reached", point)))


def _restore(outcome: RankOutcome) -> RankOutcome:
    """Puts an exception and its causes together again: pickle drops `__cause__`."""
    if isinstance(outcome.error, list):
        chain: list[BaseException] = outcome.error
        for error, cause in pairwise(chain):
            error.__cause__ = cause
        outcome.error = chain[0]
    return outcome


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(chain) < 10:
        try:
            cloudpickle.loads(cloudpickle.dumps(current))
            chain.append(current)
        except Exception as exc:
            chain.append(RuntimeError(f"{type(current).__name__}: {current} (not picklable: {exc})"))
        current = current.__cause__
    return chain


def _run(body: Callable[..., Any], rank: int, world_size: int, args: Sequence[Any], port: int | None) -> RankOutcome:
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    started = time.monotonic()
    outcome = RankOutcome()
    try:
        if port is not None:
            store = TCPStore("127.0.0.1", port, None, False, wait_for_workers=False)
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
            )
        outcome.value = body(rank, world_size, *args)
    except BaseException as exc:
        outcome.traceback = traceback.format_exc()
        outcome.error = _chain(exc)
        _forget_frames(exc)
    outcome.seconds = time.monotonic() - started
    if dist.is_initialized():
        cleaner = threading.Thread(target=dist.destroy_process_group, daemon=True)
        cleaner.start()
        cleaner.join(_CLEAN_UP_WITHIN_S)
    return outcome


def _forget_frames(exc: BaseException | None) -> None:
    while exc is not None:
        exc.__traceback__ = None
        exc = exc.__cause__ or exc.__context__


def _serve(connection: Connection, stacks: str) -> None:
    global _to_parent
    import torch

    import rank_pool

    rank_pool._to_parent = connection  # this file runs as __main__, bodies import it by name
    _to_parent = connection
    torch.set_num_threads(1)
    with open(stacks, "w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)
        while True:
            try:
                body, rank, world_size, args, port = cloudpickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            except KeyboardInterrupt:
                continue
            outcome = _run(body, rank, world_size, args, port)
            with contextlib.suppress(OSError):
                connection.send_bytes(cloudpickle.dumps(("done", outcome)))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2])
