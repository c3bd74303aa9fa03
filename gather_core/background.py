"""Calls that may block for longer than their caller can wait, such as those of a store whose host does not answer.

Each runs in a daemon thread of its own, and the caller waits for it: with a deadline, and open to Ctrl-C. What still
runs when the process ends is told to stop and waited for, here and for all.
"""

import atexit
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, Self, TypeVar

from gather_core.deadline import POLL_S, Deadline

T = TypeVar("T")

_END_WITHIN_S = 2.0


class Background(Generic[T]):
    """A call in a thread of its own, which ends with it.

    `start` may be interrupted when the call runs already; whoever may then `stop` it encloses both in one `try`.
    """

    def __init__(self, fn: Callable[[threading.Event], T], name: str = "gather-core-background") -> None:
        """Starts nothing yet.

        Args:
            fn: Gets an event that is set when nobody needs the result any more; should then return soon.
            name: The thread's.
        """
        self._fn = fn
        self._stop = threading.Event()
        self._results: list[T] = []
        self._failure: BaseException | None = None
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._call, name=name, daemon=True)

    def start(self) -> Self:
        """Starts the call; to be called once.

        Raises:
            TimeoutError: There is no time for it any more: the process is exiting.
        """
        with _starting:
            if _exiting:
                raise TimeoutError("the process is exiting")
            try:
                self._thread.start()
            except RuntimeError as exc:  # from Python 3.12 on, already where the main thread has ended
                raise TimeoutError(f"no thread for it: {exc}") from exc
        return self

    def wait(self, timeout_s: float, check_interrupt: Callable[[], None] | None = None) -> bool:
        """Waits for at most that many seconds; returns whether the call is finished.

        Raises:
            BaseException: What `check_interrupt` raises, which is called every 0.25 s meanwhile; the call goes on.
        """
        deadline = Deadline(timeout_s)
        # Not Thread.join: a Ctrl-C in it can make Python 3.11 take a running thread for an ended one. And in slices: a
        # signal that comes just before a wait begins to block is seen only when that wait ends.
        while not self._finished.wait(min(POLL_S, deadline.remaining_s())):
            if check_interrupt is not None:
                check_interrupt()
            if deadline.passed():
                return False
        return True

    def stop(self) -> None:
        """Tells the call that nobody needs its result; waits for nothing, idempotent."""
        self._stop.set()

    def result(self) -> T:
        """Returns what the finished call returned, or raises what it raised; to be called once."""
        if self._failure is not None:
            try:
                raise self._failure
            finally:
                self._failure = None  # which holds a traceback, which holds this frame
        return self._results.pop()

    def _call(self) -> None:
        _running.add(self)
        try:
            self._results.append(self._fn(self._stop))
        except BaseException as exc:
            self._failure = exc
        finally:
            _running.discard(self)
            self._finished.set()


def run_bounded(
    fn: Callable[[], T],
    timeout_s: float,
    name: str = "gather-core-background",
    check_interrupt: Callable[[], None] | None = None,
) -> T:
    """Returns what `fn()` returns, or raises what it raises; the caller can be interrupted.

    Raises:
        TimeoutError: It has not returned within `timeout_s` seconds; it goes on, and what comes of it is dropped. Or
            the process is exiting, and it was not called.
        BaseException: As `Background.wait`.
    """
    call = Background(lambda _: fn(), name).start()
    if not call.wait(timeout_s, check_interrupt):
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return call.result()


def call_within(call: Callable[[], None], within_s: float, name: str) -> bool:
    """Makes a call that may block, and waits for it; returns whether it has ended in time."""
    try:
        run_bounded(call, within_s, f"gather-core-{name}")
    except TimeoutError:
        return False
    return True


def is_exiting() -> bool:
    """Whether the process waits for the calls that still run, which should come to an end then."""
    return _exiting


_running: set[Background[Any]] = set()
_starting = threading.Lock()
_exiting = False


@atexit.register
def _end_all() -> None:
    """A daemon thread that wakes inside a finalising interpreter can abort the process: end all of them before."""
    global _exiting
    with _starting:
        _exiting = True
    calls = list(_running)
    for call in calls:
        call.stop()
    end = monotonic() + _END_WITHIN_S
    for call in calls:
        call.wait(max(end - monotonic(), 0))
