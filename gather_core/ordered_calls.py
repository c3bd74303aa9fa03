"""Calls that run one after another in a thread of their own, in the order in which they were handed in."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from gather_core.cuda_threads import current_device, use_device, work_under_way
from gather_core.deadline import POLL_S
from gather_core.errors import ClosedError

T = TypeVar("T")

_CLOSED = "this Gatherer is closed"
_END_WITHIN_S = 2.0


@dataclass(frozen=True)
class _Task:
    fn: Callable[[], Any]
    future: Future[Any]
    wait_for_caller: Callable[[], None]
    """Until what it handed in is there: the caller's CUDA stream may still be writing it."""

    def run(self) -> None:
        try:
            self.wait_for_caller()
            result = self.fn()
            work_under_way()()  # so that no stream of the caller's has to wait for this thread's
        except BaseException as exc:
            self.future.set_exception(exc)
        else:
            self.future.set_result(result)


class OrderedCalls:
    """A queue and its worker thread, which the first call starts and `close` ends.

    The worker uses the CUDA device of the thread that has made this object. A Future from here is running already:
    `cancel()` is False, as a collective that one rank leaves out would be missed by all others.
    """

    def __init__(self) -> None:
        self._device = current_device()
        self.pending: deque[_Task] = deque()
        """Those that have not ended, the one that runs first; for others to see whether there are any."""
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._is_closed = False

    @property
    def is_idle(self) -> bool:
        """Whether a call that its caller makes in its own thread keeps the order; the worker's own calls do."""
        return not self.pending or threading.current_thread() is self._worker

    def submit(self, fn: Callable[[], T]) -> Future[T]:
        """Hands in a call; returns its Future.

        Raises:
            ClosedError: The queue is closed.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        task = _Task(fn, future, work_under_way())
        with self._changed:
            if self._is_closed:
                raise ClosedError(_CLOSED)
            self.pending.append(task)
            self._changed.notify_all()
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="gather-core-async", daemon=True)
                self._worker.start()
        return future

    def call(self, fn: Callable[[], T]) -> T:
        """Runs a call behind those that are in the queue, and waits for it, open to interrupts.

        Raises:
            BaseException: What the call raises; or what a signal's handler does meanwhile, and the call goes on.
        """
        future = self.submit(fn)
        _wait_for(future)
        return future.result()

    def drain(self) -> None:
        """Waits until all have ended that were handed in so far; what they raise is in their Futures."""
        with self._changed:
            futures = [task.future for task in self.pending]
        for future in futures:
            _wait_for(future)

    def close(self) -> bool:
        """Fails those that have not begun and refuses more; returns whether one runs. Never waits; idempotent."""
        with self._changed:
            self._is_closed = True
            dropped = [self.pending.pop() for _ in range(len(self.pending) - 1)]
            self._changed.notify_all()
            is_running = bool(self.pending) and threading.current_thread() is not self._worker
        for task in reversed(dropped):
            task.future.set_exception(ClosedError(_CLOSED))
        return is_running

    def join(self) -> None:
        """Waits for the worker of a closed queue, 2 s at most."""
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(_END_WITHIN_S)

    def _work(self) -> None:
        use_device(self._device)
        while True:
            with self._changed:
                while not self.pending:
                    if self._is_closed:
                        return
                    self._changed.wait()
                task = self.pending[0]
            task.run()
            with self._changed:
                self.pending.popleft()
            del task  # what it refers to, perhaps large, must not live until the next one comes


def _wait_for(future: Future[Any]) -> None:
    while not future.done():  # in slices: a signal that comes just before a wait begins is seen when it ends
        wait([future], POLL_S)
