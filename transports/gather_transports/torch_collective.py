"""Slots through one collective of a torch backend, on buffers of its device: the frame of `nccl`.

An exchange is a copy from host memory into the device's, one collective (round 2: or a broadcast per sender), and a
copy back. Which device, and so how one thing is made to wait for another, is up to `DeviceOps`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import accumulate
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal

from gather_core.background import Background, call_within, is_exiting
from gather_core.chunks import copy_pieces
from gather_core.deadline import Deadline
from gather_core.errors import AbortedError, PeerLostError, TransportError, TransportTimeoutError, summarize
from gather_core.memory import align
from gather_core.process_id import this_pid
from gather_core.transport import GroupContext, PeerState, Transport
from gather_transports.device_ops import DeviceOps
from gather_transports.forked import never_destroy
from gather_transports.torch_backend import TorchBackend
from gather_transports.torch_errors import first_line, is_timeout

if TYPE_CHECKING:
    import torch

Algorithm = Literal["all_reduce", "all_gather"]
Collective = Callable[[TorchBackend], Any]
"""Starts one; returns its Work."""

CHUNK_NBYTES = 1 << 20
_STAGING_NBYTES = 16 << 20
"""What the chunks of all ranks may take together: twice on the host, in pinned memory, and twice on the device."""
_PADDING_PAYS = 1.5
"""One padded all-gather is cheaper than a broadcast per sender as long as it moves at most this much more."""
_GRACE_S = 30.0
"""How much longer than ours the backend's own timeout is: whoever gives up first names the ranks."""
_SPIN_S = 100e-6
_PAUSE_S = 50e-6
_END_WITHIN_S = 5.0

_log = logging.getLogger("gather_core")


@dataclass
class _Staging:
    """Memory on both sides of the device: what is sent from, and what is received into."""

    host_send: "torch.Tensor"
    device_send: "torch.Tensor"
    device_receive: "torch.Tensor"
    host_receive: "torch.Tensor"

    def __post_init__(self) -> None:
        self.outgoing = self.host_send.numpy().data
        """What the host writes."""
        self.incoming = self.host_receive.numpy().data
        """What the host reads."""


class TorchCollectiveTransport(Transport):
    """Moves slots and payloads with the collectives of one torch backend.

    Round 1 is the all-reduce of a zeroed buffer of shape (world_size, slot_nbytes) in which every rank fills its own
    row (as `all_gather_list` of DPR and fairseq do; summed as int64, which leaves any bytes what they are, as all other
    rows are zero), or an all-gather. Round 2 is exact or padded, whichever moves less.

    Args:
        ops: The device.
        algorithm: Of round 1.
        chunk_nbytes: Round 2 sends this many bytes of a payload at a time; each chunk renews the deadline.
    """

    def __init__(self, ops: DeviceOps, algorithm: Algorithm, chunk_nbytes: int = CHUNK_NBYTES) -> None:
        if type(chunk_nbytes) is not int or chunk_nbytes < 1:
            raise ValueError(f"chunk_nbytes must be an int of at least 1, not {chunk_nbytes!r}")
        self._ops = ops
        self._algorithm = algorithm
        self._chunk_nbytes = chunk_nbytes
        self._backend: TorchBackend | None = None
        self._aborted: str | None = None
        self._has_failed = False
        self._pid = this_pid()
        self._rank = 0
        self._world_size = 0
        self._slot_nbytes = 0
        self._stagings: tuple[_Staging, _Staging] | None = None
        """For slots, and for the chunks of round 2."""

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._rank = context.rank
        self._world_size = context.world_size
        self._slot_nbytes = slot_nbytes
        self._pid = this_pid()
        self._backend = TorchBackend(self._ops.connect(context, timeout_s, self.check_interrupt))
        try:
            self._stagings = self._allocate()
        except Exception as exc:
            self.close()
            raise TransportError(f"{self.name}: no memory to exchange slots in: {summarize(exc)}") from exc

    def _allocate(self) -> tuple[_Staging, _Staging]:
        """All at once, as allocating device memory later could wait for kernels of the job that wait for peers."""
        import torch

        with torch.inference_mode(False):  # which would mark them for good, if the job is in it now
            return self._staging_for_slots(), self._staging_for_chunks()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        return self._staging(0).outgoing[:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        staging, size = self._staging(0), self._slot_nbytes
        reduces = self._algorithm == "all_reduce"
        collective = self._all_reduce(staging) if reduces else self._all_gather(staging, size)
        self._exchange(staging, nbytes, len(staging.incoming), [collective], Deadline(timeout_s), clear=reduces)
        incoming = staging.incoming.toreadonly()
        return [incoming[start : start + size] for start in range(0, len(incoming), size)]

    def all_gather_exact(
        self,
        parts: Sequence[memoryview],
        nbytes_per_rank: Sequence[int],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        deadline = Deadline(timeout_s)
        longest = max(nbytes_per_rank)
        pads = self._world_size * longest <= _PADDING_PAYS * sum(nbytes_per_rank)
        for start, stop in self._chunks(longest):
            lengths = [_overlap(nbytes, start, stop) for nbytes in nbytes_per_rank]
            staging, size = self._staging(1), align(stop - start)
            copy_pieces(staging.outgoing, parts, start, start + lengths[self._rank])
            collectives = [self._all_gather(staging, size)] if pads else self._broadcasts(staging, lengths, size)
            self._exchange(staging, lengths[self._rank], self._world_size * size, collectives, deadline)
            for rank, nbytes in enumerate(lengths):
                piece = staging.outgoing if rank == self._rank else staging.incoming[rank * size :]
                into[rank][start : start + nbytes] = piece[:nbytes]
            deadline.renew()
        return into

    def all_to_all_exact(
        self,
        parts_per_peer: Sequence[Sequence[memoryview]],
        nbytes_matrix: Sequence[Sequence[int]],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        deadline = Deadline(timeout_s)
        for start, stop in self._chunks(max(map(max, nbytes_matrix))):
            staging = self._staging(1)
            sent = [_overlap(nbytes, start, stop) for nbytes in nbytes_matrix[self._rank]]
            received = [_overlap(row[self._rank], start, stop) for row in nbytes_matrix]
            for piece, parts in zip(_cut(staging.outgoing, sent), parts_per_peer, strict=True):
                copy_pieces(piece, parts, start, start + len(piece))
            collective = self._all_to_all(staging, sent, received)
            self._exchange(staging, sum(sent), sum(received), [collective], deadline)
            for payload, piece in zip(into, _cut(staging.incoming, received), strict=True):
                payload[start : start + len(piece)] = piece
            deadline.renew()
        return into

    def _staging(self, which: int) -> _Staging:
        if self._stagings is None:
            raise self._ended()
        return self._stagings[which]

    def _staging_for_slots(self) -> _Staging:
        """In an all-reduce, what is sent lies within what is received."""
        ops, size = self._ops, self._slot_nbytes
        received = ops.device_memory(self._world_size * size)
        start = self._rank * size
        sent = received[start : start + size] if self._algorithm == "all_reduce" else ops.device_memory(size)
        return _Staging(ops.host_memory(size), sent, received, ops.host_memory(self._world_size * size))

    def _staging_for_chunks(self) -> _Staging:
        ops, nbytes = self._ops, self._world_size * self._largest_chunk()
        sent = ops.host_memory(nbytes), ops.device_memory(nbytes)
        return _Staging(*sent, ops.device_memory(nbytes), ops.host_memory(nbytes))

    def _largest_chunk(self) -> int:
        return align(max(min(self._chunk_nbytes, _STAGING_NBYTES // self._world_size), 1))

    def _chunks(self, longest: int) -> Iterator[tuple[int, int]]:
        """Yields where each chunk of the longest payload starts and stops."""
        size = self._largest_chunk()
        return ((start, min(start + size, longest)) for start in range(0, longest, size))

    def _exchange(
        self,
        staging: _Staging,
        sent: int,
        received: int,
        collectives: Sequence[Collective],
        deadline: Deadline,
        *,
        clear: bool = False,
    ) -> None:
        """Sends the first `sent` bytes of the staging; afterwards the first `received` may be read from it."""
        ops = self._ops
        backend = self._check(deadline)
        if self._has_failed:
            raise TransportError(f"{self.name}: an earlier exchange failed")
        self._has_failed = True  # unless it gets to the end
        try:
            backend.set_timeout(timedelta(seconds=deadline.timeout_s + _GRACE_S))
            with ops.stream():
                if clear:
                    ops.zero(staging.device_receive)
                ops.copy(staging.device_send[:sent], staging.host_send[:sent])
                for collective in collectives:
                    work = ops.launch(partial(collective, backend))
                    ops.wait(work, partial(self._check, deadline))
                ops.copy(staging.host_receive[:received], staging.device_receive[:received])
                ops.record()
            self._finish(deadline)
        except RuntimeError as exc:
            raise self._translate(exc) from exc
        self._has_failed = False

    def _finish(self, deadline: Deadline) -> None:
        """Waits until the device has done all of it."""
        spin_until = monotonic() + _SPIN_S
        while not self._ops.is_done():
            self._check(deadline)
            sleep(_PAUSE_S if monotonic() > spin_until else 0)
        if self._aborted is not None:  # which ends what is pending, done or not
            raise self._ended()

    def _check(self, deadline: Deadline) -> TorchBackend:
        """Returns the backend while there is time, and nobody has given up."""
        self.check_interrupt()
        if self._aborted is not None or self._backend is None:
            raise self._ended()
        if deadline.passed():
            raise TransportTimeoutError(f"not all ranks came within {deadline.timeout_s:.3g} s")
        return self._backend

    def _ended(self) -> TransportError:
        if self._aborted is not None:
            return AbortedError(self._aborted, self._rank)
        return TransportError("the transport is not open")

    def _translate(self, exc: RuntimeError) -> TransportError:
        """Makes an error of ours of the backend's, which names no ranks."""
        if self._aborted is not None:
            return self._ended()
        text = first_line(exc)
        if is_timeout(text):
            return TransportTimeoutError(f"{self.name}: {text}")
        if "onnection" in text or "remote" in text:
            return PeerLostError(f"{self.name} lost a connection: {text}")
        return TransportError(f"{self.name} failed: {text}")

    def _all_reduce(self, staging: _Staging) -> Collective:
        return lambda backend: backend.all_reduce(staging.device_receive)

    def _all_gather(self, staging: _Staging, size: int) -> Collective:
        into, source = staging.device_receive[: self._world_size * size], staging.device_send[:size]
        return lambda backend: backend.all_gather(into, source)

    def _broadcasts(self, staging: _Staging, lengths: Sequence[int], size: int) -> list[Collective]:
        """One for each rank that has something to send."""
        pieces = [staging.device_receive[rank * size :][:nbytes] for rank, nbytes in enumerate(lengths)]
        pieces[self._rank] = staging.device_send[: lengths[self._rank]]
        return [
            partial(TorchBackend.broadcast, tensor=piece, src=src) for src, piece in enumerate(pieces) if len(piece)
        ]

    def _all_to_all(self, staging: _Staging, sent: Sequence[int], received: Sequence[int]) -> Collective:
        into, source = staging.device_receive[: sum(received)], staging.device_send[: sum(sent)]
        return lambda backend: backend.all_to_all(into, source, received, sent)

    def peers(self) -> list[PeerState]:
        return [PeerState.ALIVE if peer == self._rank else PeerState.UNKNOWN for peer in range(self._world_size)]

    def abort(self, reason: str) -> None:
        if self._aborted is None:
            self._aborted = reason
        try:
            Background(lambda _: self.close(), "gather-core-collective-end").start()
        except TimeoutError as exc:
            _log.debug("connections are left to the end of the process: %s", exc)

    def close(self) -> None:
        backend, stagings = self._backend, self._stagings
        self._backend = self._stagings = None
        if self._pid != this_pid():
            never_destroy((backend, stagings))
            return
        group = backend.take() if backend is not None else None
        if group is None:
            return
        if is_exiting():  # there are no more threads
            self._disconnect(group)
        elif not call_within(partial(self._disconnect, group), _END_WITHIN_S, "disconnect"):
            _log.debug("%s: the connections did not end within %g s", self.name, _END_WITHIN_S)

    def _disconnect(self, group: Any) -> None:
        try:
            self._ops.disconnect(group)
        except Exception as exc:
            _log.debug("%s: %s", self.name, summarize(exc))


def _overlap(nbytes: int, start: int, stop: int) -> int:
    """How much of a payload lies in a chunk."""
    return max(min(nbytes, stop) - start, 0)


def _cut(memory: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Pieces one behind the other."""
    ends = list(accumulate(lengths))
    return [memory[end - length : end] for end, length in zip(ends, lengths, strict=True)]
