"""One rank's own Gloo connections: how they are made, waited for, and ended while something is pending on them."""

import atexit
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from gather_core.background import run_bounded
from gather_core.deadline import POLL_S, Deadline
from gather_core.errors import AbortedError, PeerLostError, TransportError, TransportTimeoutError, format_ranks
from gather_core.process_id import this_pid
from gather_core.transport import GroupContext
from gather_transports.forked import never_destroy
from gather_transports.torch_errors import first_line, is_timeout

if TYPE_CHECKING:
    import numpy as np
    import torch

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Exchange(Protocol[T_co]):
    """What one rank does in an exchange, in two steps."""

    waits_for: int | None
    """The peer of the message that `finish` waits for; None where it cannot tell, or that peer waits for others."""

    def post(self, group: Any) -> None:
        """Posts on the process group what can be posted without waiting; called on the caller's thread."""

    def finish(self, group: Any, timeout: timedelta) -> T_co:
        """Waits, each time for at most `timeout`, and posts the rest; called on the link's thread."""


_log = logging.getLogger("gather_core")
_GRACE_S = 30.0
"""How much longer than ours Gloo's own timeouts are: whoever gives up first names the ranks, and Gloo cannot."""
_SEVER_TAG = 0
"""No rank ever sends with it."""
_SEVER_AFTER = timedelta(milliseconds=1)
_GIVE_UP_WITHIN_S = 1.0
_THREAD_ENDS_WITHIN_S = 0.02
"""Where it waits for an address; who waits for a peer that has one stays until Gloo gives up."""
_STORE_WITHIN_S = 1.0
_ROLL_CALL_S = 1.5
"""What ranks get to answer, who look every 0.25 s, if the store and the time that is left let them."""
_LATE_SHARE, _SHORTEST_LATE_S, _LONGEST_LATE_S = 0.15, 0.05, 0.5
"""What they get after the deadline, when all that live have failed and said so: less than is left for the votes."""
_SHORTEST_ATTEMPT_S = 5.0
"""As packets may be lost, and are sent again after 1 and 3 s."""
_WAITS_LONGER_BY = 5
_END_WITHIN_S = 5.0


class GlooLink:
    """The connections of one transport, and the thread that waits on them.

    The thread is there because a point-to-point wait of Gloo cannot be cut into slices: one that times out closes every
    connection. So the caller waits for the thread instead, and sees Ctrl-C, aborts and its deadline.
    """

    def __init__(self, context: GroupContext, timeout_s: float, check_interrupt: Callable[[], None]) -> None:
        """(all ranks) Connects.

        Raises:
            TransportError: No connection, or not in time; nothing is left behind.
        """
        self._pid = this_pid()
        self._rank = context.rank
        self._peers = [peer for peer in range(context.world_size) if peer != context.rank]
        self._aborted: str | None = None
        self._failure: Exception | None = None
        self._has_failed = False
        self._result: object = None
        self._finished = threading.Lock()
        self._finished.acquire()
        self._exchanges: queue.SimpleQueue[tuple[Exchange[Any], timedelta] | None] = queue.SimpleQueue()
        self._group: list[Any] = [connect(context, timeout_s, check_interrupt)]
        self._thread = threading.Thread(target=self._serve, name="gather-core-gloo", daemon=True)
        self._thread.start()

    def perform(
        self,
        exchange: Exchange[T],
        deadline: Deadline,
        check_interrupt: Callable[[], None],
        meanwhile: Callable[[], None] | None = None,
    ) -> T:
        """Begins an exchange here, finishes it on the thread and returns its result; `meanwhile` runs here.

        Raises:
            TransportTimeoutError: The deadline passed.
            PeerLostError: A connection broke.
            AbortedError: `abort` was called here.
            TransportError: The link is closed, or an earlier exchange failed, whose bytes may still arrive.
            BaseException: What `check_interrupt` raises, or a signal's handler.
        """
        group = self._group
        if not group or self._has_failed:
            raise self._ended()
        self._has_failed = True  # unless it gets to the end
        try:
            exchange.post(group[0])
        except TransportError as exc:
            raise exc.with_traceback(None) from None  # whose frames hold the process group
        self._exchanges.put((exchange, timedelta(seconds=deadline.timeout_s + _GRACE_S)))
        if meanwhile is not None:
            meanwhile()
        while not self._finished.acquire(timeout=min(POLL_S, deadline.remaining_s())):
            check_interrupt()
            if self._aborted is not None:
                raise self._ended()
            if deadline.passed():
                raise _late(exchange, deadline)
        if self._failure is not None:
            # What breaks because it is closed here, by another thread, is no fault of a peer's.
            raise self._failure if self._aborted is None and self._group else self._ended()
        self._has_failed = False
        return cast(T, self._result)

    def abort(self, reason: str) -> None:
        """Closes the connections on a thread: whatever is pending on them fails at once, here and at the peers."""
        if self._aborted is None:
            self._aborted = reason
        if self._group and self._pid == this_pid():
            ending = threading.Thread(target=self.close, name="gather-core-gloo-end", daemon=True)
            _ending.add(ending)
            ending.start()

    def close(self) -> None:
        """Closes the connections and ends the thread; takes milliseconds, and never raises.

        The bytes that are under way are still delivered: severed connections are closed as any, while the destructor of
        the process group by itself would reset them.
        """
        group, self._group = self._group, []
        if not group:
            return
        if self._pid != this_pid():
            never_destroy(group)
            return
        self._exchanges.put(None)
        sever(group[0], self._peers)
        if self._thread is not threading.current_thread():  # a garbage collection can end up here anywhere
            self._thread.join(_END_WITHIN_S)
        group.clear()  # the last reference: no name of the thread and no traceback may hold it, as its destructor waits

    def _ended(self) -> TransportError:
        if self._aborted is not None:
            return AbortedError(self._aborted, self._rank)
        return TransportError("an earlier exchange failed" if self._group else "the transport is closed")

    def _serve(self) -> None:
        while (task := self._exchanges.get()) is not None:
            exchange, timeout = task
            group = self._group
            try:
                if group:
                    self._result = exchange.finish(group[0], timeout)
            except Exception as exc:
                self._failure = exc.with_traceback(None)  # whose frames hold the process group
            del task, exchange, group
            self._finished.release()


def _late(exchange: Exchange[Any], deadline: Deadline) -> TransportTimeoutError:
    """Says in words alone who is waited for: others may be late too, and that rank on account of another."""
    text = f"not all ranks came within {deadline.timeout_s:.3g} s"
    if exchange.waits_for is not None:
        text += f"; this one was waiting for rank {exchange.waits_for}"
    return TransportTimeoutError(text)


def connect(context: GroupContext, timeout_s: float, check_interrupt: Callable[[], None]) -> Any:
    """(all ranks) Makes a ProcessGroupGloo of these ranks alone.

    Raises:
        TransportError: No connection, or not in time; nothing is left behind.
        BaseException: What `check_interrupt` raises, or a signal's handler.
    """
    return _Connecting(context, timeout_s).wait(check_interrupt)


def sever(group: Any, peers: Sequence[int]) -> None:
    """Closes all connections, whatever is pending on them, by a receive that times out at once.

    Gloo's own `abort` does nothing. But a receive that times out signals an exception to all connections of its group
    (`waitRecv` in gloo/transport/tcp/unbound_buffer.cc): all that is pending on them fails, here and at the peers.
    """
    import torch

    nothing = torch.empty(1, dtype=torch.uint8, device="cpu")
    for peer in peers:
        try:
            group.recv([nothing], peer, _SEVER_TAG).wait(_SEVER_AFTER)
        except RuntimeError as exc:
            if "imed out" in str(exc):
                return
            _log.debug("no connection to rank %d any more: %s", peer, exc)


_ending: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()
_connecting: "weakref.WeakSet[_Connecting]" = weakref.WeakSet()


@atexit.register
def _finish_ending() -> None:
    """A thread that wakes up inside Gloo while the interpreter is finalised would abort the process: wait for it."""
    for connecting in list(_connecting):
        connecting.give_up()
    for thread in list(_ending):
        thread.join(_END_WITHIN_S)


def _attempt_s(timeout_s: float) -> float:
    """What to tell Gloo, in seconds: whoever connects tries for that long, and who waits for that, five times longer.

    (`Pair::waitUntilConnected` in gloo/transport/tcp/pair.cc.) Nothing ends that wait for a rank that died meanwhile.
    """
    whole_s = timeout_s + 1
    return min(whole_s, max(_SHORTEST_ATTEMPT_S, whole_s / _WAITS_LONGER_BY))


class _Connecting:
    """The construction of a process group, on a thread: it blocks until every peer has come."""

    def __init__(self, context: GroupContext, timeout_s: float) -> None:
        from gather_transports.gloo_rendezvous import RendezvousStore, RollCall

        self._context = context
        self._timeout_s = timeout_s
        self._deadline = Deadline(timeout_s)
        self._store = RendezvousStore(context.store, self._deadline)
        self._roll_call = RollCall(context)
        self._finished = threading.Event()
        self._made: list[Any] = []
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._construct, name="gather-core-gloo-connect", daemon=True)

    def wait(self, check_interrupt: Callable[[], None]) -> Any:
        """Returns the process group; see `connect`."""
        _ending.add(self._thread)
        _connecting.add(self)
        self._thread.start()
        deadline = self._deadline
        try:
            # An event, as a Ctrl-C in Thread.join can make Python take a running thread for an ended one.
            while not self._finished.wait(min(POLL_S, deadline.remaining_s())):
                check_interrupt()
                if deadline.passed():
                    break
                _tell(self._roll_call.answer)
        except BaseException:
            self.give_up()
            self._finished.wait(_GIVE_UP_WITHIN_S)
            raise
        if self._made:
            _tell(self._roll_call.here_still)
            return self._made[0]
        self.give_up()
        cause = self._failure
        failure = self._late() if cause is None or deadline.passed() else self._failed(cause)
        self._finished.wait(_THREAD_ENDS_WITHIN_S)
        raise failure from cause

    def give_up(self) -> None:
        """Ends the waiting for peers; from any thread."""
        self._store.give_up()

    def _construct(self) -> None:
        import torch.distributed as dist

        context = self._context
        try:
            self._store.check_wanted()
            self._roll_call.announce()
            # Its timeout is that of connecting alone, as every wait has its own.
            timeout = timedelta(seconds=_attempt_s(self._timeout_s))
            self._made.append(dist.ProcessGroupGloo(self._store, context.rank, context.world_size, timeout))
        except Exception as exc:
            self._failure = exc
        self._finished.set()

    def _late(self) -> TransportTimeoutError:
        text = f"Gloo did not connect all {self._context.world_size} ranks in {self._timeout_s:g} s"
        if missing := _asked(self._roll_call.missing, _STORE_WITHIN_S):
            return TransportTimeoutError(f"{text}: {format_ranks(missing)} never came to it", missing)
        silent = self._fallen_silent(min(_LATE_SHARE * self._timeout_s + _SHORTEST_LATE_S, _LONGEST_LATE_S))
        return TransportTimeoutError(f"{text}{_named(silent)}", silent)

    def _failed(self, cause: Exception) -> TransportError:
        text = f"Gloo could not connect: {first_line(cause)}"
        silent = self._fallen_silent(min(_ROLL_CALL_S, self._deadline.remaining_s()))
        return PeerLostError(f"{text}{_named(silent)}", silent) if silent else TransportError(text)

    def _fallen_silent(self, within_s: float) -> list[int]:
        return _asked(lambda: self._roll_call.fallen_silent(within_s), within_s + _STORE_WITHIN_S)


def _named(silent: Sequence[int]) -> str:
    return f": {format_ranks(silent)} came to it, and fell silent" if silent else ""


def _asked(ask: Callable[[], list[int]], within_s: float) -> list[int]:
    """Asks the store for ranks; none where it does not answer."""
    try:
        return run_bounded(ask, within_s)
    except (TimeoutError, RuntimeError) as exc:
        _log.debug("who is missing is not known: %s", exc)
        return []


def _tell(say: Callable[[], None]) -> None:
    """Says something to the other ranks through the store; that it does not answer is no reason to fail here."""
    try:
        run_bounded(say, _STORE_WITHIN_S)
    except (TimeoutError, RuntimeError) as exc:
        _log.debug("the other ranks were not told that this one is there: %s", exc)


def gloo(call: Callable[..., T], *arguments: Any, peer: int | None = None) -> T:
    """Calls something of Gloo's; what fails names the peer, where it is about one.

    Raises:
        PeerLostError: The connection broke.
        TransportTimeoutError: Gloo gave up.
    """
    try:
        return call(*arguments)
    except RuntimeError as exc:
        failure = _translate(exc, peer)
    raise failure  # here, so that it has no context, whose frames would hold the process group


def _translate(exc: RuntimeError, peer: int | None) -> TransportError:
    """Makes an error of ours from one of Gloo's, which names an address at best."""
    text = first_line(exc)
    if is_timeout(text):
        return TransportTimeoutError(f"Gloo: {text}")
    if peer is None:
        return PeerLostError(f"Gloo lost a connection: {text}")
    return PeerLostError(f"Gloo lost the connection to rank {peer}: {text}", (peer,))


class _Writable:
    """Shows an array's memory as writable: torch warns of read-only memory, which a send never writes."""

    def __init__(self, array: "np.ndarray[Any, Any]") -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def as_tensor(view: memoryview) -> "torch.Tensor":
    """A uint8 tensor over the view's memory, which it keeps alive; nothing is copied."""
    import numpy as np
    import torch

    array = np.frombuffer(view, np.uint8)
    return torch.from_numpy(array if not view.readonly else np.asarray(_Writable(array)))
