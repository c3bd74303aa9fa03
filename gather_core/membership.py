"""One rank's membership in a group: what holds between two operations, and who may begin the next one."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from gather_core.call import Call
from gather_core.codec import DecodeOptions
from gather_core.deadline import Deadline
from gather_core.errors import (
    AbortedError,
    ClosedError,
    DecodeError,
    DesyncError,
    GatherError,
    GroupBrokenError,
    PeerLostError,
    RankFailedError,
    SettingsError,
    SlotOverflowError,
    TransportTimeoutError,
    summarize,
)
from gather_core.notes import NOTES_WITHIN_S, Notes
from gather_core.ordered_calls import OrderedCalls
from gather_core.positions import Position
from gather_core.process_id import this_pid
from gather_core.rendezvous import Connection
from gather_core.rounds import Rounds
from gather_core.stats import Stats
from gather_core.transport import PeerState, Transport

T = TypeVar("T")

_HARMLESS = (RankFailedError, SlotOverflowError, DecodeError)
"""What leaves the group usable: the same on every rank, or (a decode error) after the last exchange."""


_IN_STREAM = "iter_gather() is not at its end: take all items of it or close it"
_NESTED = "called from inside another operation of the same Gatherer, such as its codec"


@dataclass(slots=True)
class _Activity:
    """What is under way."""

    stream: object = None
    """The owner of the stream that has begun and not ended: nothing else may run."""
    thread: int | None = None
    """The one that is in an operation."""
    is_closed: bool = False
    """The group was left: nothing can run any more."""

    def described(self) -> str | None:
        """In words, where it is not this thread that would be left in the middle of it."""
        if self.stream is not None:
            return "iter_gather() was not at its end"
        return "an operation was running" if self.thread not in (None, threading.get_ident()) else None


class Membership:
    """Lets one operation run at a time, behind those that were handed in before it, until the group is broken or left.

    Whoever drops it leaves the group, as by `close`.
    """

    def __init__(self, connection: Connection, options: DecodeOptions, stats: Stats) -> None:
        self.rounds = Rounds(connection, options, stats)
        self._transport = connection.transport
        self._notes = connection.notes
        self._lock = threading.RLock()
        self._calls = OrderedCalls()
        self._activity = _Activity()
        self._broken: BaseException | None = None
        self._pid = this_pid()
        self._finalizer = weakref.finalize(
            self, _release, connection.notes, connection.transport, self._calls, self._activity, self._pid
        )

    def check(self) -> None:
        """Raises ClosedError, GroupBrokenError, or GatherError during a stream, where no operation can begin."""
        self.check_usable()
        if self._activity.stream is not None:
            raise GatherError(_IN_STREAM)

    def check_usable(self) -> None:
        """Raises ClosedError, in a forked child too, or GroupBrokenError."""
        self._notes.check_process()
        self.check_open()

    def check_open(self) -> None:
        """Raises ClosedError or GroupBrokenError."""
        if self._activity.is_closed:
            raise ClosedError("this Gatherer is closed")
        if self._broken is not None:
            raise GroupBrokenError(
                f"the group is broken since: {summarize(self._broken)}; construct a new Gatherer"
            ) from self._broken

    def begin_stream(self, owner: object) -> None:
        """Waits for what was handed in before, and refuses all else from here on until `end_stream` of that owner.

        Raises:
            GatherError: Another stream has not ended, or an operation of this thread.
        """
        self._notes.check_process()
        self.drain()
        with self._lock:
            self._refuse_nested()
            self.check()
            self._activity.stream = owner

    def end_stream(self, owner: object) -> None:
        """The stream of that owner has ended, if it had begun."""
        if self._activity.stream is owner:
            self._activity.stream = None

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Hands in a call that runs operations, behind those that have not ended.

        Raises:
            SettingsError: The transport cannot have operations in the background.
            ClosedError, GroupBrokenError, GatherError: It could not begin.
            BaseException: It was not handed in, and the group is broken, as others may wait for it.
        """
        self.check()
        if self._transport.capabilities.shares_group:
            name = self._transport.name
            raise SettingsError(f"transport {name} uses the job's own group, so it has no asynchronous operations")
        try:
            return self._calls.submit(call)
        except GatherError:
            raise
        except BaseException as exc:
            self.abort(exc)
            raise

    def operate(self, call: Call, obj: object, failed_call: Exception | None = None) -> Any:
        """Runs one operation; from here on whatever goes wrong reaches every rank."""
        notes, activity = self._notes, self._activity
        if self._pid != this_pid():  # before locks, which a thread of the parent's may hold for ever
            notes.check_process()
        if self._calls.pending and not self._calls.is_idle:
            self._refuse_nested()
            with self.telling_interrupts():
                return self._calls.call(lambda: self.operate(call, obj, failed_call))
        with self._lock:
            if activity.thread is not None:
                raise GatherError(_NESTED)
            if activity.is_closed or self._broken is not None:
                self.check_open()
            if activity.stream is not None and call.operation != "iter_gather":
                raise GatherError(_IN_STREAM)
            activity.thread = threading.get_ident()
            try:
                if notes.aborted is not None:
                    notes.check()
                return self.rounds.operate(call, obj, failed_call)
            except _HARMLESS:
                raise
            except BaseException as exc:
                self._break(exc)
            finally:
                activity.thread = None
                if self._broken is None:
                    notes.position = (self.rounds.seq, call.operation, call.tag, "done")

    @contextmanager
    def telling_interrupts(self) -> Iterator[None]:
        """Breaks the group where what is no Exception comes between operations that others count on, as in one."""
        try:
            yield
        except Exception:
            raise
        except BaseException as exc:
            self.abort(exc)
            raise

    def _refuse_nested(self) -> None:
        if self._activity.thread == threading.get_ident():
            raise GatherError(_NESTED)

    def call_function(self, call: Call, fn: Callable[..., T], args: Sequence[Any]) -> T:
        """Calls the function given to `run`, while others who ask are told that this is what keeps this rank busy."""
        before = self._notes.position
        meanwhile: Position = (self.rounds.seq + 1, call.operation, call.tag, "function")
        self._replace_position(before, meanwhile)
        try:
            return fn(*args)
        finally:
            self._replace_position(meanwhile, before)

    def _replace_position(self, old: Position, new: Position) -> None:
        """Changes what others are told, unless an operation, of the function or another thread, has its say."""
        if self._lock.acquire(blocking=False):
            try:
                if self._activity.thread is None and self._notes.position is old:
                    self._notes.position = new
            finally:
                self._lock.release()

    def abort(self, exc: BaseException | None) -> None:
        """Breaks the group, and tells the others without waiting for them. Idempotent."""
        if self._broken is None and not self._activity.is_closed and self._pid == this_pid():
            cause = exc if exc is not None else GatherError("abort() was called")
            self._broken = cause
            text = summarize(cause)
            self._notes.abort(text)
            self._transport.abort(text)

    def drain(self) -> None:
        """Waits for all operations that were handed in; in a forked child there are none.

        Raises:
            GatherError: An operation of this thread asks, which they may wait for.
        """
        if self._pid == this_pid():
            self._refuse_nested()
            with self.telling_interrupts():
                self._calls.drain()

    def close(self) -> None:
        """Leaves the group; never collective, idempotent."""
        self._activity.is_closed = True  # whatever interrupts the rest, which then may be called again
        self._finalizer()

    def _break(self, exc: BaseException) -> NoReturn:
        """Breaks the group, tells the others, and raises what is known about the cause; takes 1.5 s at most."""
        self._notes.check_process()  # a child that was forked inside the operation leaves the parent's group alone
        self._broken = error = exc
        deadline = Deadline(NOTES_WITHIN_S)
        try:
            if isinstance(exc, TransportTimeoutError | PeerLostError | DesyncError):
                dead = [rank for rank, state in enumerate(self._transport.peers()) if state is PeerState.DEAD]
                self._broken = error = self._notes.explain(exc, deadline, dead)
            elif isinstance(exc, AbortedError):
                self._broken = error = self._notes.origin(exc)
            if not isinstance(error, AbortedError):
                self._notes.abort(summarize(error), deadline)
        finally:  # also where a Ctrl-C ends the asking
            self._transport.abort(summarize(error))
        if error is exc:
            raise exc
        raise error from exc


def _release(notes: Notes, transport: Transport, calls: OrderedCalls, activity: _Activity, pid: int) -> None:
    activity.is_closed = True
    is_ours = pid == this_pid()  # in a forked child, a thread of the parent's may hold the lock of the calls
    if is_ours:
        is_running = calls.close()
        what = "an asynchronous operation was running" if is_running else activity.described()
        if what is not None:
            transport.abort(f"closed while {what}")
    notes.close()
    transport.close()
    if is_ours:
        calls.join()
