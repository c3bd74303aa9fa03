"""CPU bytes between any hosts, over Gloo connections of our own.

The connections are a `ProcessGroupGloo` of this transport alone, made over the group's store, in which only members
take part; so a timeout here cannot break the job's own group, and two Gatherers cannot cross. (`new_group` called by
members only makes a later world-wide one hang.)

How slots travel is a small table; measure it by `gather_bench.ratios --transport gloo:all_to_all_up_to_nbytes=0`:

- slots up to 32 KiB: one `all_to_all` of the repeated slot. Gloo posts all its messages at once, a single hop, where
  its all-gather and all-reduce are rings.
- larger ones: direct sends of what is filled, into receives of the slot's size. A small object in a large slot then
  costs its own bytes only.

Round 2 is always direct and exact, in chunks.
"""

import atexit
import logging
import os
import queue
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gather_core.chunks import copy_pieces, payload_views, pieces
from gather_core.deadline import POLL_S, Deadline
from gather_core.errors import AbortedError, PeerLostError, TransportError, TransportTimeoutError
from gather_core.memory import aligned_buffer
from gather_core.transport import Capabilities, GroupContext, PeerState, Transport

if TYPE_CHECKING:
    import numpy as np
    import torch

_ALL_TO_ALL_UP_TO_NBYTES = 32 * 1024
_log = logging.getLogger("gather_core")
_SOURCE_PLACE = re.compile(r"\[\S+\.(cc|cpp|h):\d+\] ")
_POLL = timedelta(seconds=POLL_S)
_GRACE = timedelta(seconds=30)
"""How much longer than ours Gloo's own timeout is: whoever gives up first names the ranks, and Gloo cannot."""
_SLOT_TAG = 1
_CHUNK_TAG = 2
_SEVER_TAG = 3
"""No rank ever sends with it."""
_SEVER_WITHIN_S = 5.0


class GlooTransport(Transport):
    """Gloo over TCP; see the module's docstring.

    Args:
        chunk_nbytes: Round 2 sends this many bytes at a time to each peer; each chunk renews the deadline.
        all_to_all_up_to_nbytes: Slots up to this size use one all_to_all; larger ones are sent directly.
    """

    name = "gloo"
    capabilities = Capabilities(locality="any", death_detection="fast")

    def __init__(self, *, chunk_nbytes: int = 8 << 20, all_to_all_up_to_nbytes: int = _ALL_TO_ALL_UP_TO_NBYTES) -> None:
        if chunk_nbytes < 1 or all_to_all_up_to_nbytes < 0:
            raise ValueError("chunk_nbytes must be at least 1, all_to_all_up_to_nbytes at least 0")
        self._chunk_nbytes = chunk_nbytes
        self._all_to_all_up_to_nbytes = all_to_all_up_to_nbytes
        self._pid = os.getpid()
        self._group: Any = None
        self._waiter: _Waiter | None = None
        self._aborted: str | None = None
        self._pending = False

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_gloo_available():
            return "this build of torch has no Gloo"
        if context is not None and context.process_group is None and context.world_size > 1:
            return "it needs torch.distributed's store"
        return None

    @property
    def spec(self) -> str:
        from gather_core.registry import format_spec

        defaults = {"chunk_nbytes": 8 << 20, "all_to_all_up_to_nbytes": _ALL_TO_ALL_UP_TO_NBYTES}
        values = {"chunk_nbytes": self._chunk_nbytes, "all_to_all_up_to_nbytes": self._all_to_all_up_to_nbytes}
        return format_spec(self.name, {key: value for key, value in values.items() if value != defaults[key]})

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if self._group is not None:
            raise TransportError("this transport is open already: give each Gatherer one of its own")
        self._rank = context.rank
        self._world_size = context.world_size
        self._slot_nbytes = slot_nbytes
        self._peers = [peer for peer in range(context.world_size) if peer != context.rank]
        self._repeats = slot_nbytes <= self._all_to_all_up_to_nbytes
        self._group = self._connect(context, timeout_s)
        self._waiter = _Waiter()
        self._allocate()

    def _connect(self, context: GroupContext, timeout_s: float) -> Any:
        """Makes the process group on a thread: its constructor blocks until every peer has come."""
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore

        made: list[Any] = []
        failed: list[BaseException] = []

        def connect() -> None:
            try:
                store = PrefixStore(f"gather_core/{context.scope}/gloo", _torch_store(context))
                made.append(
                    dist.ProcessGroupGloo(
                        store, context.rank, context.world_size, timedelta(seconds=timeout_s) + _GRACE
                    )
                )
            except RuntimeError as exc:
                failed.append(exc)

        thread = threading.Thread(target=connect, name="gather-core-gloo-connect", daemon=True)
        thread.start()
        deadline = Deadline(timeout_s)
        while thread.is_alive():
            thread.join(min(POLL_S, deadline.remaining_s()))
            self.check_interrupt()
            if deadline.passed() and thread.is_alive():
                raise TransportTimeoutError(f"Gloo did not connect all {context.world_size} ranks in {timeout_s:g} s")
        if failed:
            raise TransportError(f"Gloo could not connect: {failed[0]}") from failed[0]
        return made[0]

    def _allocate(self) -> None:
        """Slots of all ranks to receive into; own slot once per rank for all_to_all, else once."""
        import torch.distributed as dist

        slots_nbytes = self._world_size * self._slot_nbytes
        self._received = aligned_buffer(slots_nbytes)
        self._outgoing = aligned_buffer(slots_nbytes if self._repeats else self._slot_nbytes)
        self._outgoing[:] = bytes(len(self._outgoing))
        self._received_tensor = _as_tensor(self._received)
        self._outgoing_tensor = _as_tensor(self._outgoing)
        self._rows = self._outgoing_tensor.view(-1, self._slot_nbytes)
        size = self._slot_nbytes
        self._views = [self._received[rank * size : (rank + 1) * size].toreadonly() for rank in range(self._world_size)]
        own_row = self._rank if self._repeats else 0
        self._slot = self._outgoing[own_row * size : (own_row + 1) * size]
        self._slot_row = self._rows[own_row]
        self._row_of_peer = [self._received_tensor[peer * size : (peer + 1) * size] for peer in range(self._world_size)]
        self._all_to_all_options = dist.AllToAllOptions()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        return self._slot[:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if self._world_size == 1:
            return [self._slot.toreadonly()]
        if self._repeats:
            self._all_to_all(nbytes, timeout_s)
            return self._views
        views = list(self._views)
        views[self._rank] = self._slot[:nbytes].toreadonly()
        sent = self._slot_row[:nbytes]
        self._exchange(
            [(peer, self._row_of_peer[peer]) for peer in self._peers],
            [(peer, sent) for peer in self._peers],
            _SLOT_TAG,
            Deadline(timeout_s),
        )
        return views

    def _all_to_all(self, nbytes: int, timeout_s: float) -> None:
        self._rows[:, :nbytes] = self._slot_row[:nbytes]
        options = self._all_to_all_options
        options.timeout = timedelta(seconds=timeout_s) + _GRACE
        deadline = Deadline(timeout_s)
        self._pending = True
        try:
            work = self._live_group().alltoall_base(self._received_tensor, self._outgoing_tensor, [], [], options)
            while not self._wait_slice(work, deadline):
                self._check(deadline)
        except RuntimeError as exc:
            raise _translate(exc) from exc
        self._pending = False

    @staticmethod
    def _wait_slice(work: Any, deadline: Deadline) -> bool:
        """Waits a little; returns whether the work is done. Unlike a p2p wait, one that times out harms nothing."""
        try:
            work.wait(min(_POLL, timedelta(seconds=deadline.remaining_s())))
        except RuntimeError:
            if work.is_completed():
                raise
            return False
        return True

    def all_gather_exact(
        self, parts: Sequence[memoryview], nbytes_per_rank: Sequence[int], *, into: memoryview, timeout_s: float
    ) -> Sequence[memoryview]:
        own_nbytes = nbytes_per_rank[self._rank]
        payloads = payload_views(into, nbytes_per_rank)
        outgoing = _Stream(parts, own_nbytes, self._chunk_nbytes)
        streams = {peer: outgoing for peer in self._peers if own_nbytes}
        incoming = {peer: payloads[peer] for peer in self._peers if nbytes_per_rank[peer]}
        self._exchange_chunks(
            incoming, streams, timeout_s, lambda: copy_pieces(payloads[self._rank], parts, 0, own_nbytes)
        )
        return payloads

    def all_to_all_exact(
        self,
        parts_per_peer: Sequence[Sequence[memoryview]],
        nbytes_matrix: Sequence[Sequence[int]],
        *,
        into: memoryview,
        timeout_s: float,
    ) -> Sequence[memoryview]:
        rank = self._rank
        sent = nbytes_matrix[rank]
        payloads = payload_views(into, [row[rank] for row in nbytes_matrix])
        streams = {
            peer: _Stream(parts_per_peer[peer], sent[peer], self._chunk_nbytes) for peer in self._peers if sent[peer]
        }
        incoming = {peer: payloads[peer] for peer in self._peers if nbytes_matrix[peer][rank]}
        self._exchange_chunks(
            incoming, streams, timeout_s, lambda: copy_pieces(payloads[rank], parts_per_peer[rank], 0, sent[rank])
        )
        return payloads

    def _exchange_chunks(
        self,
        incoming: dict[int, memoryview],
        outgoing: "dict[int, _Stream]",
        timeout_s: float,
        meanwhile: Callable[[], None],
    ) -> None:
        """Sends and receives payloads chunk by chunk; `meanwhile` runs while the first chunk is under way."""
        deadline = Deadline(timeout_s)
        size = self._chunk_nbytes
        longest = max((*map(len, incoming.values()), *(stream.nbytes for stream in outgoing.values())), default=0)
        for start in range(0, longest, size):
            receives = [
                (peer, _as_tensor(payload[start : start + size]))
                for peer, payload in incoming.items()
                if start < len(payload)
            ]
            sends = [(peer, stream.chunk(start)) for peer, stream in outgoing.items() if start < stream.nbytes]
            self._exchange(receives, sends, _CHUNK_TAG, deadline, meanwhile if start == 0 else None)
            deadline.renew()
        if longest == 0:
            meanwhile()

    def _exchange(
        self,
        receives: "Sequence[tuple[int, torch.Tensor]]",
        sends: "Sequence[tuple[int, torch.Tensor]]",
        tag: int,
        deadline: Deadline,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Posts receives, then sends, and waits for all of them."""
        waiter = self._waiter
        if waiter is None:
            raise TransportError("the transport is closed")
        self._pending = True
        try:
            works = [self._live_group().recv([tensor], peer, tag) for peer, tensor in receives]
            works += [self._live_group().send([tensor], peer, tag) for peer, tensor in sends]
        except RuntimeError as exc:
            raise _translate(exc) from exc
        # The thread keeps every buffer alive for as long as Gloo may touch it, also when this rank has given up.
        done = waiter.submit(works, (receives, sends), timedelta(seconds=deadline.timeout_s) + _GRACE)
        if meanwhile is not None:
            meanwhile()
        while not done.finished.wait(min(POLL_S, deadline.remaining_s())):
            self._check(deadline)
        if done.error is not None:
            raise _translate(done.error) from done.error
        self._pending = False

    def _live_group(self) -> Any:
        group = self._group
        if group is None:
            raise TransportError(self._aborted or "the transport is closed")
        return group

    def _check(self, deadline: Deadline) -> None:
        """Between two slices of a wait: aborts of others and our own, and the deadline."""
        self.check_interrupt()
        if self._aborted is not None:
            raise AbortedError(self._aborted, self._rank)
        if deadline.passed():
            raise TransportTimeoutError(f"not all ranks came within {deadline.timeout_s:.3g} s")

    def peers(self) -> list[PeerState]:
        states = [PeerState.UNKNOWN] * self._world_size
        states[self._rank] = PeerState.ALIVE
        return states

    def abort(self, reason: str) -> None:
        self._aborted = reason
        self._drop()

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        """Lets the connections go; by force and on a thread where an exchange is pending.

        No local name and no frame of a traceback may hold the group: the last reference is where the waiting happens.
        """
        last = [self._group]
        self._group = None
        waiter, self._waiter = self._waiter, None
        if last == [None]:
            return
        if self._pid != os.getpid():
            _of_the_parent.append(last)  # its threads exist in the parent only: destroying it here would hang
            return
        if waiter is not None:
            waiter.stop()
        if self._pending:
            severing = threading.Thread(
                target=_sever, args=(last, self._peers), name="gather-core-gloo-sever", daemon=True
            )
            _severing.add(severing)
            severing.start()


_of_the_parent: list[Any] = []
_severing: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()


@atexit.register
def _finish_severing() -> None:
    """A thread that wakes up inside Gloo while the interpreter is finalised would abort the process: wait for it."""
    for thread in list(_severing):
        thread.join(_SEVER_WITHIN_S)


def _sever(last: list[Any], peers: Sequence[int]) -> None:
    """Closes the connections of the process group in `last`, whatever is pending on them, and destroys it.

    Gloo's own `abort` does nothing, and its destructor waits for what is pending. But a receive that times out closes
    its connection: then everything that is pending on it fails at once, here and at the peer.
    """
    import torch

    nothing = torch.empty(1, dtype=torch.uint8)
    for peer in peers:
        try:
            last[0].recv([nothing], peer, _SEVER_TAG).wait(timedelta(milliseconds=1))
        except RuntimeError as exc:  # which is what closes it; or it was closed already
            _log.debug("severed from rank %d: %s", peer, exc)
    last.clear()


def _torch_store(context: GroupContext) -> Any:
    """The store that Gloo itself connects over: torch's own, as C++ code cannot call ours."""
    bell: Any = context.bell
    return bell.store


def _translate(exc: BaseException) -> TransportError:
    lines = _SOURCE_PLACE.sub("", str(exc)).splitlines() or [type(exc).__name__]
    text = lines[0].partition(". This is typically")[0]
    if isinstance(exc, TransportError):
        return exc
    if "imed out" in text:
        return TransportTimeoutError(f"Gloo: {text}")
    return PeerLostError(f"Gloo lost a connection: {text}")


class _Stream:
    """A payload in parts, cut into chunks: views where a chunk lies in one part, else copied together once."""

    def __init__(self, parts: Sequence[memoryview], nbytes: int, chunk_nbytes: int) -> None:
        self.nbytes = nbytes
        self._parts = parts
        self._chunk_nbytes = chunk_nbytes
        self._start = -1
        self._chunk: Any = None

    def chunk(self, start: int) -> "torch.Tensor":
        """The chunk from byte `start` on; asked for once per peer, in order."""
        if start != self._start:
            stop = min(start + self._chunk_nbytes, self.nbytes)
            views = list(pieces(self._parts, start, stop))
            if len(views) == 1:
                self._chunk = _as_tensor(views[0])
            else:
                joined = aligned_buffer(stop - start)
                copy_pieces(joined, self._parts, start, stop)
                self._chunk = _as_tensor(joined)
            self._start = start
        return self._chunk  # type: ignore[no-any-return]


class _Writable:
    """Shows an array's memory as writable: torch warns of read-only memory, which a send never writes."""

    def __init__(self, array: "np.ndarray[Any, Any]") -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _as_tensor(view: memoryview) -> "torch.Tensor":
    """A uint8 tensor over the view's memory, which it keeps alive; nothing is copied."""
    import numpy as np
    import torch

    array = np.frombuffer(view, np.uint8)
    return torch.from_numpy(array if not view.readonly else np.asarray(_Writable(array)))


class _Done:
    """One batch of point-to-point works, as the waiter finishes it."""

    def __init__(self, works: Sequence[Any], buffers: object, timeout: timedelta) -> None:
        self.works = works
        self.buffers = buffers
        self.timeout = timeout
        self.finished = threading.Event()
        self.error: BaseException | None = None


class _Waiter:
    """A daemon thread that waits for point-to-point works: a wait in slices would kill their connections."""

    def __init__(self) -> None:
        self._batches: queue.SimpleQueue[_Done | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="gather-core-gloo-wait", daemon=True).start()

    def submit(self, works: Sequence[Any], buffers: object, timeout: timedelta) -> _Done:
        """Waits for `works` in the background, keeping `buffers` alive until they are done."""
        done = _Done(works, buffers, timeout)
        self._batches.put(done)
        return done

    def stop(self) -> None:
        """Ends the thread after what it is waiting for."""
        self._batches.put(None)

    def _serve(self) -> None:
        while (done := self._batches.get()) is not None:
            try:
                for work in done.works:
                    work.wait(done.timeout)
            except RuntimeError as exc:
                done.error = exc
            done.finished.set()
            del done
