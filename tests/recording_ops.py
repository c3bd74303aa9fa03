"""A stand-in for a CUDA device: what is enqueued is done late, on threads, and who reads too early reads poison."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gather_transports.device_ops import CpuOps

_POISON = 0xAA
_LATE_S = 0.004
_END_WITHIN_S = 5.0


class _Stream:
    """Does one thing after the other, on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"recording-{name}", daemon=True)
        self._thread.start()

    def enqueue(self, task: Callable[[], object]) -> None:
        self._tasks.put(task)

    def tail(self) -> threading.Event:
        """What is set when all that is enqueued so far is done."""
        reached = threading.Event()
        self.enqueue(reached.set)
        return reached

    def end(self) -> None:
        self._tasks.put(None)
        self._thread.join(_END_WITHIN_S)

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


@dataclass
class _Work:
    done: threading.Event = field(default_factory=threading.Event)


class RecordingOps(CpuOps):
    """Orders nothing by itself: only what waits for an event comes after it, as on a CUDA device.

    The stream that is current outside of `stream()` is the job's, and busy for as long as this object is not closed.
    """

    def __init__(self) -> None:
        self._jobs, self._own, self._communicator = map(_Stream, ("job", "own", "communicator"))
        self._job_ends = threading.Event()
        self._jobs.enqueue(self._job_ends.wait)
        self._current = self._jobs
        self._mark: threading.Event | None = None
        self._failure: Exception | None = None

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        self._current = self._own
        try:
            yield
        finally:
            self._current = self._jobs

    def zero(self, tensor: torch.Tensor) -> None:
        self._write_late(tensor, tensor.zero_)

    def copy(self, into: torch.Tensor, source: torch.Tensor) -> None:
        self._write_late(into, lambda: into.copy_(source))

    def _write_late(self, tensor: torch.Tensor, write: Callable[[], object]) -> None:
        def write_late() -> None:
            time.sleep(_LATE_S)
            write()

        tensor.fill_(_POISON)
        self._current.enqueue(write_late)

    def launch(self, collective: Callable[[], Any]) -> Any:
        """On a stream of the communicator's, behind what is on the current one by now, as NCCL does."""
        work, before = _Work(), self._current.tail()

        def run() -> None:
            before.wait()
            time.sleep(2 * _LATE_S)
            try:
                collective().wait()
            except Exception as exc:
                self._failure = exc
            work.done.set()

        self._communicator.enqueue(run)
        return work

    def wait(self, work: Any, check: Callable[[], object]) -> None:
        self._current.enqueue(work.done.wait if isinstance(work, _Work) else work.wait)

    def record(self) -> None:
        self._mark = self._current.tail()

    def is_done(self) -> bool:
        """As `cudaEventQuery`: an event that was never recorded has happened, and a failure shows here."""
        if self._failure is not None:
            raise RuntimeError(str(self._failure)) from self._failure
        return self._mark is None or self._mark.is_set()

    def close(self) -> None:
        """Lets the job's stream go on, and ends all three once they have done everything."""
        self._job_ends.set()
        for stream in (self._jobs, self._own, self._communicator):
            stream.end()
