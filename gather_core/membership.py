"""One rank's membership in a group: what holds between two operations, and who may begin the next one."""

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
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
from gather_core.rendezvous import Connection
from gather_core.rounds import Rounds
from gather_core.stats import Stats
from gather_core.transport import PeerState, Transport

T = TypeVar("T")

_HARMLESS = (RankFailedError, SlotOverflowError, DecodeError)
"""What leaves the group usable: the same on every rank, or (a decode error) after the last exchange."""


_IN_STREAM = "iter_gather() is not at its end: take all items of it or close it"


class Membership:
    """Lets one operation run at a time, behind those that were handed in before it, until the group is broken or left.

    Whoever drops it leaves the group, as by `close`.
    """

    def __init__(self, connection: Connection, options: DecodeOptions, stats: Stats) -> None:
        self.rounds = Rounds(connection, options, stats)
        self.is_streaming = False
        """A stream has begun and not ended: nothing else may run."""
        self._transport = connection.transport
        self._notes = connection.notes
        self._lock = threading.RLock()
        self._calls = OrderedCalls()
        self._busy = False
        self._broken: BaseException | None = None
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _release, connection.notes, connection.transport, self._calls)

    def check(self) -> None:
        """Raises ClosedError or GroupBrokenError where no operation can begin."""
        self._check_process()
        self._check_open()

    def begin_stream(self) -> None:
        """Waits for what was handed in before, and refuses all else from here on until `is_streaming` is unset.

        Raises:
            GatherError: Another stream has not ended.
        """
        self._check_process()
        self._calls.drain()
        with self._lock:
            self._check_open()
            if self.is_streaming:
                raise GatherError(_IN_STREAM)
            self.is_streaming = True

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Hands in a call that runs operations, behind those that have not ended.

        Raises:
            SettingsError: The transport cannot have operations in the background.
            ClosedError, GroupBrokenError: It could not begin.
        """
        self.check()
        if self._transport.capabilities.shares_group:
            name = self._transport.name
            raise SettingsError(f"transport {name} uses the job's own group, so it has no asynchronous operations")
        return self._calls.submit(call)

    def operate(self, call: Call, obj: object, failed_call: Exception | None = None) -> Any:
        """Runs one operation; from here on whatever goes wrong reaches every rank."""
        self._check_process()  # before the locks: in a forked child, a thread of the parent's may hold them for ever
        if self._calls.pending and not self._calls.is_idle:
            return self._operate_behind_others(call, obj, failed_call)
        with self._lock:
            if self._busy:
                raise GatherError("called from inside another operation of the same Gatherer, such as its codec")
            self._check_open()
            if self.is_streaming and call.operation != "iter_gather":
                raise GatherError(_IN_STREAM)
            self._busy = True
            try:
                self._notes.check()
                return self.rounds.operate(call, obj, failed_call)
            except _HARMLESS:
                raise
            except BaseException as exc:
                self._break(exc)
            finally:
                self._busy = False
                if self._broken is None:
                    self._notes.position = (self.rounds.seq, call.operation, call.tag, "done")

    def _operate_behind_others(self, call: Call, obj: object, failed_call: Exception | None) -> Any:
        """Waits for its turn behind operations in the background, which the worker then gives to it."""
        try:
            return self._calls.call(lambda: self.operate(call, obj, failed_call))
        except Exception:
            raise
        except BaseException as exc:  # as in an operation of this thread
            self.abort(exc)
            raise

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
                if not self._busy and self._notes.position is old:
                    self._notes.position = new
            finally:
                self._lock.release()

    def abort(self, exc: BaseException | None) -> None:
        """Breaks the group, and tells the others without waiting for them. Idempotent."""
        if self._broken is None and self._finalizer.alive and self._pid == os.getpid():
            cause = exc if exc is not None else GatherError("abort() was called")
            self._broken = cause
            text = summarize(cause)
            self._notes.abort(text)
            self._transport.abort(text)

    def drain(self) -> None:
        """Waits for all operations that were handed in; in a forked child there are none."""
        if self._pid == os.getpid():
            self._calls.drain()

    def close(self) -> None:
        """Leaves the group; never collective, idempotent."""
        self._finalizer()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ClosedError("this Gatherer belongs to the parent process: construct one after the fork")

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ClosedError("this Gatherer is closed")
        if self._broken is not None:
            raise GroupBrokenError(
                f"the group is broken since: {summarize(self._broken)}; construct a new Gatherer"
            ) from self._broken

    def _break(self, exc: BaseException) -> NoReturn:
        """Breaks the group, tells the others, and raises what is known about the cause; takes 1.5 s at most."""
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


def _release(notes: Notes, transport: Transport, calls: OrderedCalls) -> None:
    if calls.close():
        transport.abort("closed while an asynchronous operation was running")
    notes.close()
    transport.close()
    calls.join()
