"""Calls that run one after another in a thread of their own, in the order in which they were handed in."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from gather_core.cuda_threads import current_device, use_device, work_under_way
from gather_core.deadline import POLL_S
from gather_core.errors import ClosedError, GatherError

T = TypeVar("T")

_CLOSED = "this Gatherer is closed"
_END_WITHIN_S = 2.0


@dataclass(frozen=True)
class _Task:
    fn: Callable[[], Any]
    future: Future[Any]
    wait_for_caller: Callable[[], None]
    """Until what it handed in is there: the caller's CUDA stream may still be writing it."""


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
        self._is_calling = False
        """The worker is in a call, and not in what others want to be told of its end."""
        self._is_closed = False

    @property
    def is_idle(self) -> bool:
        """Whether a call that its caller makes in its own thread keeps the order; what a call of the worker does too.

        Raises:
            GatherError: As `submit`.
        """
        if not self.pending or (self._is_calling and self._is_worker()):
            return True
        self._refuse_callbacks()
        return False

    def submit(self, fn: Callable[[], T]) -> Future[T]:
        """Hands in a call; returns its Future.

        Raises:
            ClosedError: The queue is closed.
            GatherError: A callback of a Future asks, which runs in the worker, or in any thread: there is no order.
            RuntimeError: There can be no thread. The call was not handed in, and never runs.
        """
        self._refuse_callbacks()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        task = _Task(fn, future, work_under_way())
        with self._changed:
            if self._is_closed:
                raise ClosedError(_CLOSED)
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="gather-core-async", daemon=True)
                worker.start()
                self._worker = worker
            self.pending.append(task)
            self._changed.notify_all()
        return future

    def call(self, fn: Callable[[], T]) -> T:
        """Runs a call behind those that are in the queue, and waits for it, open to interrupts.

        Raises:
            BaseException: What the call raises; or what a signal's handler does meanwhile, and the call goes on.
        """
        future = self.submit(fn)
        try:
            _wait_for(future)
            return future.result()
        finally:
            del future  # its exception refers to this frame

    def drain(self) -> None:
        """Waits until all have ended that were handed in so far; what they raise is in their Futures.

        Raises:
            GatherError: As `submit`; also where a call of the worker asks, which would wait for itself.
        """
        with self._changed:
            futures = [task.future for task in self.pending]
        if futures and self._is_worker():
            raise GatherError("called from inside an asynchronous operation of the same Gatherer, or a callback of it")
        for future in futures:
            _wait_for(future)

    def close(self) -> bool:
        """Fails those that have not begun and refuses more; returns whether one runs. Never waits; idempotent."""
        with self._changed:
            self._is_closed = True
            dropped = [self.pending.pop() for _ in range(len(self.pending) - 1)]
            self._changed.notify_all()
            is_running = bool(self.pending) and not self.pending[0].future.done() and not self._is_worker()
        for task in reversed(dropped):
            task.future.set_exception(ClosedError(_CLOSED))
        return is_running

    def join(self) -> None:
        """Waits for the worker of a closed queue, 2 s at most."""
        if self._worker is not None and not self._is_worker():
            self._worker.join(_END_WITHIN_S)

    def _is_worker(self) -> bool:
        return threading.current_thread() is self._worker

    def _refuse_callbacks(self) -> None:
        if self._is_worker() and not self._is_calling:
            raise GatherError("a callback of a Future cannot call its Gatherer: ranks would come to it in any order")

    def _work(self) -> None:
        use_device(self._device)
        while (task := self._next()) is not None:
            try:
                result = self._call(task.fn, task.wait_for_caller)
            except BaseException as exc:
                task.future.set_exception(exc)
            else:
                task.future.set_result(result)
                del result
            with self._changed:
                self.pending.popleft()
            del task  # what it refers to, perhaps large, must not live until the next one comes

    def _next(self) -> _Task | None:
        """Waits for the next task; None where the worker is to end."""
        with self._changed:
            while self._worker is threading.current_thread():  # else a Ctrl-C has come while it was started
                if self.pending:
                    return self.pending[0]
                if self._is_closed:
                    break
                self._changed.wait()
        return None

    def _call(self, fn: Callable[[], T], wait_for_caller: Callable[[], None]) -> T:
        """Without the task: what is raised refers to this frame, and the task to what is raised."""
        self._is_calling = True
        try:
            wait_for_caller()
            result = fn()
            work_under_way()()  # so that no stream of the caller's has to wait for this thread's
            return result
        finally:
            self._is_calling = False


def _wait_for(future: Future[Any]) -> None:
    while not future.done():  # in slices: a signal that comes just before a wait begins is seen when it ends
        wait([future], POLL_S)
