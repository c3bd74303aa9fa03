"""What runs in the worker processes of a RankPool, and the messages between them and the test.

The test's process imports this file too, so torch is imported only in functions that run in a worker.
"""

import contextlib
import faulthandler
import importlib
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import cloudpickle

_CLEAN_UP_WITHIN_S = 5.0


class UnpicklableError(Exception):
    """Stands in for an exception that cannot be pickled; the message is the original's traceback."""


@dataclass(frozen=True)
class Task:
    """What a worker is sent."""

    rank: int
    world_size: int
    store_address: tuple[str, int]
    init: bool
    """Whether the body finds a default process group."""
    body_and_args: bytes


@dataclass(frozen=True)
class PickledError:
    """An exception as bytes. Its cause is pickled on its own, because pickle drops `__cause__`."""

    pickled: bytes
    traceback: str
    cause: "PickledError | None"

    @classmethod
    def dump(cls, exc: BaseException) -> "PickledError":
        """Pickles an exception and its causes, and lets go of their frames and so of all that the body had."""
        text = "".join(traceback.format_exception(exc, chain=False))
        cause = None if exc.__cause__ is None else cls.dump(exc.__cause__)
        _forget_frames(exc)
        try:
            pickled = cloudpickle.dumps(exc)
        except Exception:
            pickled = b""
        return cls(pickled, text, cause)

    def load(self) -> BaseException:
        """The exception and its causes, each an `UnpicklableError` where it cannot be loaded."""
        error = self._load_without_cause()
        if self.cause is not None:
            error.__cause__ = self.cause.load()
        return error

    def _load_without_cause(self) -> BaseException:
        with contextlib.suppress(Exception):
            error = cloudpickle.loads(self.pickled)
            if isinstance(error, BaseException):
                return error
        return UnpicklableError(self.traceback)


@dataclass(frozen=True)
class Report:
    """What a worker sends back at the end of a body; before, it sends the points that the body reaches, as strings."""

    value: bytes
    """Pickled; empty where the body raised."""
    error: PickledError | None
    traceback: str
    """Of the error, with those of its causes and contexts."""
    seconds: float
    is_clean: bool
    """Whether the process is fit for another body."""


_to_parent: Connection | None = None
_sending = threading.Lock()
_task: Task | None = None


def reached(point: str) -> None:
    """Called in a body, in any thread: tells the test that this rank is here."""
    if _to_parent is None:
        raise RuntimeError("reached() is for bodies on ranks of a RankPool")
    _send(_to_parent, point)


def store_address() -> tuple[str, int]:
    """Called in a body: host and port of the TCPStore of this run, which the parent hosts."""
    if _task is None:
        raise RuntimeError("store_address() is for bodies on ranks of a RankPool")
    return _task.store_address


def stacks_file(scratch: str | Path, pid: int) -> Path:
    """Where a worker writes the stacks of its threads on SIGUSR1."""
    return Path(scratch, f"stacks-{pid}")


def serve(fileno: int, scratch: str) -> None:
    """The main function of a worker: runs tasks from the connection until the parent closes it."""
    global _to_parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only bodies can be interrupted
    os.set_inheritable(fileno, False)
    for name in ("numpy", "torch.distributed", "gather_core"):
        importlib.import_module(name)
    _to_parent = Connection(fileno)
    with open(stacks_file(scratch, os.getpid()), "w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)
        with contextlib.suppress(EOFError, OSError):  # the parent is done, or dead
            _send(_to_parent, "ready")
            while True:
                _send(_to_parent, _run(_to_parent.recv()))


def _send(connection: Connection, message: str | Report) -> None:
    with _sending:
        connection.send(message)


def _run(task: Task) -> Report:
    global _task
    _task = task
    value, error, text = b"", None, ""
    started = time.monotonic()
    try:
        value = _call(task)
    except BaseException as exc:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # where an interrupt kept _call from it
        text = traceback.format_exc()
        error = PickledError.dump(exc)
    seconds = time.monotonic() - started
    return Report(value, error, text, seconds, _clean_up())


def _call(task: Task) -> bytes:
    """Runs the body, which SIGINT interrupts, and pickles its value."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        body, args = cloudpickle.loads(task.body_and_args)
        if task.init:
            _init_process_group(task)
        value: bytes = cloudpickle.dumps(body(task.rank, task.world_size, *args))
        return value
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _init_process_group(task: Task) -> None:
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore(*task.store_address, None, False, wait_for_workers=False)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=task.rank, world_size=task.world_size, timeout=timeout)


def _clean_up() -> bool:
    """Destroys the process group; False where that fails or hangs, as it may with a broken group."""
    import torch.distributed as dist

    def destroy() -> None:
        with contextlib.suppress(Exception):  # there is none, or it stays and is seen below
            dist.destroy_process_group()

    cleaner = threading.Thread(target=destroy, daemon=True)
    cleaner.start()
    cleaner.join(_CLEAN_UP_WITHIN_S)
    return not cleaner.is_alive() and not dist.is_initialized()


def _forget_frames(exc: BaseException) -> None:
    current: BaseException | None = exc
    while current is not None:
        current.__traceback__ = None
        current = current.__context__
