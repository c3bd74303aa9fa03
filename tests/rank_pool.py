"""Ranks for tests: worker processes that import torch once per session and then run many test bodies.

A body is a function of (rank, world_size, *args), sent by value. Around it the worker has the default process group
(Gloo, over a store that the parent hosts, so that killing any rank leaves it alive). The upper half of this file runs
in the test, the lower half (from `reached` on) in the workers.
"""

import contextlib
import faulthandler
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

_ROOT = Path(__file__).resolve().parent.parent
_TESTS = _ROOT / "tests"
_SOURCE_ROOTS = [str(_ROOT / name) for name in ("", "codecs", "transports", "benchmarks", "tests")]
_HOST = "127.0.0.1"
_START_WITHIN_S = 120.0
_CLEAN_UP_WITHIN_S = 5.0
_STACK_WITHIN_S = 2.0
_LOOK_FOR_DEATHS_EVERY_S = 0.5


class RanksHungError(AssertionError):
    """Some ranks did not get there in time; the message holds the stacks of all their threads."""


class UnpicklableError(Exception):
    """Stands in for an exception that cannot be pickled; the message is the original's traceback."""


@dataclass
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


@dataclass
class _Task:
    """What a worker is sent."""

    rank: int
    world_size: int
    port: int
    init: bool
    body_and_args: bytes


@dataclass
class _Report:
    """What a worker sends back."""

    value: bytes = b""
    errors: list[tuple[bytes, str]] = field(default_factory=list)
    """The exception and its causes, each on its own because pickle drops `__cause__`: pickle and traceback."""
    traceback: str = ""
    seconds: float = 0.0
    is_clean: bool = True


class _Worker:
    """The parent's end of one process."""

    def __init__(self, scratch: Path, number: int) -> None:
        ours, theirs = socket.socketpair()
        self.stacks = scratch / f"stacks-{number}"
        serve = f"import rank_pool; rank_pool.serve({theirs.fileno()}, {str(self.stacks)!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", serve], env=_environment(scratch), pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.reached: set[str] = set()
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Waits for its imports, so that no body's timeout has to cover them."""
        if self._is_ready:
            return
        if not self.connection.poll(_START_WITHIN_S):
            raise RuntimeError(f"a rank's process was not ready within {_START_WITHIN_S:.0f} s")
        try:
            self._is_ready = self.connection.recv() == "ready"
        except EOFError:
            raise RuntimeError(f"a rank's process ended with {self.process.wait()} before it was ready") from None

    def stop(self) -> None:
        """Ends the process, whose connection is closed already, gently if it can."""
        try:
            self.process.wait(_CLEAN_UP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def stack(self) -> str:
        """The stacks of the process's threads, which it writes to a file on SIGUSR1."""
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + _STACK_WITHIN_S
        text, previous = "", None
        while time.monotonic() < deadline and not (text and text == previous):
            time.sleep(0.05)
            text, previous = self.stacks.read_text(), text
        return text or f"(no stack within {_STACK_WITHIN_S:.0f} s: the process is stopped)"


class Running:
    """A body that is running on some ranks."""

    def __init__(self, workers: Sequence[_Worker], discard: Callable[[_Worker], None], store: "TCPStore") -> None:
        self._workers = workers
        self._discard = discard
        self._store = store  # lives as long as the ranks need it
        self._outcomes: dict[int, RankOutcome] = {}

    def pid(self, rank: int) -> int:
        """The process id of a rank."""
        return self._workers[rank].process.pid

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
        while point not in self._workers[rank].reached:
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

    def _pending(self) -> dict[int, _Worker]:
        return {rank: worker for rank, worker in enumerate(self._workers) if rank not in self._outcomes}

    def _receive(self, deadline: float, what: str) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            self._give_up(what)
        self.poll(min(left_s, _LOOK_FOR_DEATHS_EVERY_S))

    def _take_in(self, rank: int, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._died(rank, worker)
            return
        if isinstance(message, _Report):
            self._outcomes[rank] = _restore(message)
            if not message.is_clean:
                self._discard(worker)
        else:
            worker.reached.add(message)

    def _died(self, rank: int, worker: _Worker) -> None:
        self._outcomes[rank] = RankOutcome(exitcode=worker.process.wait())
        self._discard(worker)

    def _give_up(self, what: str) -> None:
        hung = self._pending()
        states = {rank: str(outcome) for rank, outcome in self._outcomes.items()}
        states |= {rank: f"hung\n{worker.stack()}" for rank, worker in hung.items()}
        self.abandon()
        raise RanksHungError(f"waited in vain for {what}; hung: {sorted(hung)}\n{_by_rank(states)}")


class RankPool:
    """Starts workers as they are needed and keeps them. Runs one body at a time."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="rank-pool-")
        self.scratch = Path(self._scratch.name)
        """Everything temporary of the workers is here, and their environment names it."""
        (self.scratch / "tmp").mkdir()
        self._workers: list[_Worker] = []
        self._num_started = 0
        self._running: Running | None = None

    def start(self, world_size: int, body: Callable[..., Any], *args: Any, init: bool = True) -> Running:
        """Starts `body(rank, world_size, *args)` on every rank; without `init` there is no process group.

        A body that still runs, because its test failed before it waited for it, is killed first.
        """
        if self._running is not None:
            self._running.abandon()
        workers = self._take(world_size)
        store = _host_store()  # imports torch, while the workers do
        with _by_value(body):
            body_and_args = cloudpickle.dumps((body, args))
        for rank, worker in enumerate(workers):
            worker.wait_until_ready()
            worker.reached.clear()
            with contextlib.suppress(OSError):  # has just died: its outcome will say so
                worker.connection.send(_Task(rank, world_size, store.port, init, body_and_args))
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
            states = _by_rank(dict(enumerate(map(str, outcomes))))
            raise AssertionError(f"expected the death of {sorted(expect_death)}, not of {sorted(died)}\n{states}")
        return outcomes

    def values(
        self, world_size: int, body: Callable[..., Any], *args: Any, timeout_s: float = 60, init: bool = True
    ) -> list[Any]:
        """Runs the body on every rank and returns its values; fails with every traceback where a rank failed."""
        outcomes = self.start(world_size, body, *args, init=init).wait(timeout_s)
        failed = {r: str(o) for r, o in enumerate(outcomes) if o.error is not None or o.exitcode is not None}
        if failed:
            raise AssertionError(f"the body failed on {sorted(failed)}\n{_by_rank(failed)}")
        return [outcome.value for outcome in outcomes]

    def close(self) -> list[str]:
        """Stops all workers, and returns what bodies left behind: processes (killed now) and temporary files."""
        if self._running is not None:
            self._running.abandon()
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        left = [*_end_processes_of(self.scratch), *(str(path) for path in (self.scratch / "tmp").iterdir())]
        self._scratch.cleanup()
        return left

    def _take(self, world_size: int) -> list[_Worker]:
        for worker in [worker for worker in self._workers if worker.process.poll() is not None]:
            self._discard(worker)
        while len(self._workers) < world_size:
            self._num_started += 1
            self._workers.append(_Worker(self.scratch, self._num_started))
        return self._workers[:world_size]

    def _discard(self, worker: _Worker) -> None:
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


def _environment(scratch: Path) -> dict[str, str]:
    path = os.pathsep.join([*_SOURCE_ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "RES_OPTIONS": "timeout:1 attempts:1",  # a connecting TCPStore asks DNS too, and waits 5 s where none answers
        "TMPDIR": str(scratch / "tmp"),
    }


def _by_rank(states: dict[int, str]) -> str:
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


def _restore(report: _Report) -> RankOutcome:
    chain = [_restore_error(*error) for error in report.errors]
    for error, cause in pairwise(chain):
        error.__cause__ = cause
    outcome = RankOutcome(None, chain[0] if chain else None, report.traceback, None, report.seconds)
    if not chain:
        try:
            outcome.value = cloudpickle.loads(report.value)
        except Exception as exc:
            outcome.error, outcome.traceback = exc, traceback.format_exc()
    return outcome


def _restore_error(pickled: bytes, text: str) -> BaseException:
    try:
        error = cloudpickle.loads(pickled)
    except Exception:
        return UnpicklableError(text)
    return error if isinstance(error, BaseException) else UnpicklableError(text)


def _end_processes_of(scratch: Path, within_s: float = 3) -> list[str]:
    """Kills what outlived its worker, forked or spawned by it: its environment names the scratch folder (Linux)."""
    deadline = time.monotonic() + within_s  # a resource tracker ends a little after its process
    while (pids := _processes_of(scratch)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while _processes_of(scratch) and time.monotonic() < deadline + within_s:
        time.sleep(0.01)  # a killed process is there for a moment
    return [f"process {pid}" for pid in pids]


def _processes_of(scratch: Path) -> list[int]:
    pids = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # has ended, or is another user's
            if os.fsencode(scratch) in environ.read_bytes():
                pids.append(int(environ.parent.name))
    return pids


_to_parent: Connection | None = None
_sending = threading.Lock()
_task: _Task | None = None


def reached(point: str) -> None:
    """Called in a body: tells the test that this rank is here."""
    if _to_parent is None:
        raise RuntimeError("reached() is for bodies on ranks of a RankPool")
    with _sending:
        _to_parent.send(point)


def store_address() -> tuple[str, int]:
    """Called in a body: host and port of the TCPStore of this run, which the parent hosts."""
    if _task is None:
        raise RuntimeError("store_address() is for bodies on ranks of a RankPool")
    return _HOST, _task.port


def serve(fileno: int, stacks: str) -> None:
    """The main function of a worker: runs tasks from the connection until the parent closes it."""
    global _to_parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only bodies can be interrupted
    os.set_inheritable(fileno, False)
    for name in ("numpy", "torch.distributed", "gather_core"):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    _to_parent = Connection(fileno)
    with open(stacks, "w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)
        with contextlib.suppress(EOFError, OSError):  # the parent is done, or dead
            _to_parent.send("ready")
            while True:
                _to_parent.send(_run(_to_parent.recv()))


def _run(task: _Task) -> _Report:
    global _task
    _task = task
    report = _Report()
    started = time.monotonic()
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            report.value = _call(task)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as exc:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # where the interrupt hit the line above
        report.traceback = traceback.format_exc()
        report.errors = _chain(exc)
    report.seconds = time.monotonic() - started
    report.is_clean = _clean_up()
    return report


def _call(task: _Task) -> bytes:
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    body, args = cloudpickle.loads(task.body_and_args)
    if task.init:
        store = TCPStore(_HOST, task.port, None, False, wait_for_workers=False)
        timeout = timedelta(seconds=60)
        dist.init_process_group("gloo", store=store, rank=task.rank, world_size=task.world_size, timeout=timeout)
    pickled: bytes = cloudpickle.dumps(body(task.rank, task.world_size, *args))
    return pickled


def _chain(exc: BaseException) -> list[tuple[bytes, str]]:
    """Pickles an exception and its causes, and lets go of their frames and so of all that the body had."""
    chain: list[tuple[bytes, str]] = []
    current: BaseException | None = exc
    while current is not None:
        text = "".join(traceback.format_exception(current, chain=False))
        _forget_frames(current)
        try:
            chain.append((cloudpickle.dumps(current), text))
        except Exception:
            chain.append((b"", text))
        current = current.__cause__
    return chain


def _forget_frames(exc: BaseException) -> None:
    current: BaseException | None = exc
    while current is not None:
        current.__traceback__ = None
        current = current.__context__


def _clean_up() -> bool:
    """Destroys the process group; False where that fails or hangs, as it may with a broken group."""
    import torch.distributed as dist

    cleaner = threading.Thread(target=_destroy_process_group, daemon=True)
    cleaner.start()
    cleaner.join(_CLEAN_UP_WITHIN_S)
    return not cleaner.is_alive() and not dist.is_initialized()


def _destroy_process_group() -> None:
    import torch.distributed as dist

    with contextlib.suppress(Exception):  # _clean_up looks whether it is gone
        if dist.is_initialized():
            dist.destroy_process_group()
