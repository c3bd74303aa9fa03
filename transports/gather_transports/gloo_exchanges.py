"""How bytes travel between the ranks of a Gloo group: through a hub, by all_to_all, or directly.

Every exchange runs on the link's thread. That a receive may be longer than what is sent into it, as Gloo allows, is
what makes all of them exact: receives have the size of a slot, sends the size of what is filled.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gather_core.chunks import copy_pieces, payload_views, pieces
from gather_core.errors import ProtocolError
from gather_core.memory import ALIGNMENT, align, aligned_buffer
from gather_transports.gloo_link import as_tensor, wait_for

if TYPE_CHECKING:
    import torch

HUB = 0
_SLOT_TAG = 1
_PAYLOAD_TAG = 2
_CHUNK_TAG = 3
_LENGTH = struct.Struct("<Q")


class SlotExchange(ABC):
    """Round 1: owns this rank's slot and the memory into which the others' arrive."""

    slot: memoryview
    """This rank's slot, writable."""

    def begin(self, group: Any) -> None:
        """Posts what can be posted before the first round; called once."""
        del group

    @abstractmethod
    def run(self, group: Any, nbytes: int, timeout: timedelta) -> list[memoryview]:
        """Exchanges the first `nbytes` of the slots; returns a read-only view per rank, valid until the next round."""


class HubSlots(SlotExchange):
    """Rank 0 of an exchange in which every rank sends its slot there, and gets those of all in one message.

    The receives for a round are posted at the end of the one before, into the other of two buffers: then a peer's send
    goes out at once, where Gloo otherwise has sender and receiver notify each other first.
    """

    def __init__(self, world_size: int, slot_nbytes: int) -> None:
        self._peers = range(1, world_size)
        self._packed = _PackedSlots(world_size, slot_nbytes)
        self.slot = self._packed.first_slot
        row = ALIGNMENT + slot_nbytes
        self._rows = [payload_views(aligned_buffer(row * len(self._peers)), [row] * len(self._peers)) for _ in range(2)]
        self._row_tensors = [[as_tensor(row) for row in rows] for rows in self._rows]
        self._turn = 0
        self._posted: list[Any] = []

    def begin(self, group: Any) -> None:
        tensors = zip(self._peers, self._row_tensors[self._turn], strict=True)
        self._posted = [group.recv([tensor], peer, _SLOT_TAG) for peer, tensor in tensors]

    def run(self, group: Any, nbytes: int, timeout: timedelta) -> list[memoryview]:
        for work, peer in zip(self._posted, self._peers, strict=True):
            wait_for(work, timeout, peer)
        rows = self._rows[self._turn]
        self._turn = 1 - self._turn
        self.begin(group)
        lengths = self._packed.check([nbytes, *(_LENGTH.unpack_from(row)[0] for row in rows)])
        filled = [row[ALIGNMENT : ALIGNMENT + length] for row, length in zip(rows, lengths[1:], strict=True)]
        messages = self._packed.pack(lengths, filled)
        sends = [group.send([message], peer, _SLOT_TAG) for peer, message in zip(self._peers, messages, strict=True)]
        for work, peer in zip(sends, self._peers, strict=True):
            wait_for(work, timeout, peer)
        return [self.slot[:nbytes].toreadonly(), *(slot.toreadonly() for slot in filled)]


class SpokeSlots(SlotExchange):
    """Any other rank of that exchange. Its message is the length of what is filled, padded to 64 bytes, and that."""

    def __init__(self, rank: int, world_size: int, slot_nbytes: int) -> None:
        self._is_last = rank == world_size - 1
        self._packed = _PackedSlots(world_size, slot_nbytes)
        self._message = aligned_buffer(ALIGNMENT + slot_nbytes)
        self._message_tensor = as_tensor(self._message)
        self._filled = -1
        self._sent = self._message_tensor
        self.slot = self._message[ALIGNMENT:]

    def run(self, group: Any, nbytes: int, timeout: timedelta) -> list[memoryview]:
        received = group.recv([self._packed.tensor], HUB, _SLOT_TAG)
        if nbytes != self._filled:
            _LENGTH.pack_into(self._message, 0, nbytes)
            self._filled, self._sent = nbytes, self._message_tensor[: ALIGNMENT + nbytes]
        wait_for(group.send([self._sent], HUB, _SLOT_TAG), timeout, HUB)
        wait_for(received, timeout, HUB)
        views = self._packed.unpack()
        if self._is_last:
            views[-1] = self.slot[:nbytes].toreadonly()
        return views


class _PackedSlots:
    """The hub's message: the lengths of all slots, as u64, then what is filled of each, every start aligned to 64.

    The last rank's own slot is left out for that rank, where leaving it out is easy: with two ranks, that is half.
    """

    def __init__(self, world_size: int, slot_nbytes: int) -> None:
        self._slot_nbytes = slot_nbytes
        self._num_peers = world_size - 1
        self._table = struct.Struct(f"<{world_size}Q")
        self._start = align(self._table.size)
        self._memory = aligned_buffer(self._start + world_size * slot_nbytes)
        self._readable = self._memory.toreadonly()
        self.tensor = as_tensor(self._memory)
        """All of it, to receive into."""
        self.first_slot = self._memory[self._start : self._start + slot_nbytes]
        """Where rank 0's lies."""

    def check(self, lengths: Sequence[int]) -> Sequence[int]:
        """Returns the lengths.

        Raises:
            ProtocolError: One is larger than a slot.
        """
        if max(lengths) > self._slot_nbytes:
            raise ProtocolError(f"a rank claims to fill {max(lengths)} of the {self._slot_nbytes} bytes of its slot")
        return lengths

    def pack(self, lengths: Sequence[int], peers_slots: Sequence[memoryview]) -> "list[torch.Tensor]":
        """Writes lengths and all slots but the first, which is there already; returns the message for each peer."""
        self._table.pack_into(self._memory, 0, *lengths)
        position = self._start + align(lengths[0])
        for slot in peers_slots[:-1]:
            self._memory[position : position + len(slot)] = slot
            position = align(position + len(slot))
        for_last = self.tensor[:position]
        if self._num_peers == 1:
            return [for_last]
        last = peers_slots[-1]
        self._memory[position : position + len(last)] = last
        for_others = self.tensor[: position + len(last)]
        return [for_others] * (self._num_peers - 1) + [for_last]

    def unpack(self) -> list[memoryview]:
        """Cuts the message into the slots.

        Raises:
            ProtocolError: Its lengths are wrong.
        """
        return payload_views(self._readable[self._start :], self.check(self._table.unpack_from(self._memory)))


class AllToAllSlots(SlotExchange):
    """One all_to_all, in which every rank sends what is filled of its slot to every other: Gloo posts all at once."""

    def __init__(self, rank: int, world_size: int, slot_nbytes: int) -> None:
        import torch.distributed as dist

        self._rank = rank
        self._num_peers = world_size - 1
        self._outgoing = aligned_buffer(self._num_peers * slot_nbytes)
        self._outgoing_tensor = as_tensor(self._outgoing)
        self.slot = self._outgoing[:slot_nbytes]
        self._received = aligned_buffer(self._num_peers * slot_nbytes)
        self._received_tensor = as_tensor(self._received)
        self._receives = [slot_nbytes if peer != rank else 0 for peer in range(world_size)]
        self._views = payload_views(self._received.toreadonly(), self._receives)
        self._options = dist.AllToAllOptions()

    def run(self, group: Any, nbytes: int, timeout: timedelta) -> list[memoryview]:
        total = self._num_peers * nbytes
        for number in range(1, self._num_peers):
            self._outgoing[number * nbytes : (number + 1) * nbytes] = self._outgoing[:nbytes]
        sends = [nbytes if length else 0 for length in self._receives]
        self._options.timeout = timeout
        group.alltoall_base(
            self._received_tensor, self._outgoing_tensor[:total], self._receives, sends, self._options
        ).wait(timeout)
        views = list(self._views)
        views[self._rank] = self._outgoing[:nbytes].toreadonly()
        return views


class DirectSlots(SlotExchange):
    """Every rank sends what is filled of its slot to every other, without copying it for each."""

    def __init__(self, rank: int, world_size: int, slot_nbytes: int) -> None:
        self._rank = rank
        self.slot = aligned_buffer(slot_nbytes)
        self._slot_tensor = as_tensor(self.slot)
        self._views = payload_views(aligned_buffer(world_size * slot_nbytes), [slot_nbytes] * world_size)
        self._rows = {peer: as_tensor(view) for peer, view in enumerate(self._views) if peer != rank}

    def run(self, group: Any, nbytes: int, timeout: timedelta) -> list[memoryview]:
        sent = self._slot_tensor[:nbytes]
        exchange_directly(group, self._rows, dict.fromkeys(self._rows, sent), _SLOT_TAG, timeout)
        views = [view.toreadonly() for view in self._views]
        views[self._rank] = self.slot[:nbytes].toreadonly()
        return views


def exchange_directly(
    group: Any,
    receives: "dict[int, torch.Tensor]",
    sends: "dict[int, torch.Tensor]",
    tag: int,
    timeout: timedelta,
) -> None:
    """Posts all receives and sends, by peer, and waits for them."""
    works = [(peer, group.recv([tensor], peer, tag)) for peer, tensor in receives.items()]
    works += [(peer, group.send([tensor], peer, tag)) for peer, tensor in sends.items()]
    for peer, work in works:
        wait_for(work, timeout, peer)


class HubPayloads:
    """Round 2 through rank 0: one message each way, as all lengths are known.

    Args:
        rank: This rank.
        parts: Its payload.
        nbytes_per_rank: Everybody's, in bytes.
    """

    def __init__(self, rank: int, parts: Sequence[memoryview], nbytes_per_rank: Sequence[int]) -> None:
        self._rank = rank
        self._block = aligned_buffer(sum(map(align, nbytes_per_rank)))
        self._payloads = payload_views(self._block, nbytes_per_rank)
        self._senders = [peer for peer, nbytes in enumerate(nbytes_per_rank) if nbytes and peer != HUB]
        copy_pieces(self._payloads[rank], parts, 0, nbytes_per_rank[rank])

    def run(self, group: Any, timeout: timedelta) -> list[memoryview]:
        """Exchanges the payloads and returns them; an `Exchange`."""
        (self._serve if self._rank == HUB else self._exchange)(group, timeout)
        return [payload.toreadonly() for payload in self._payloads]

    def _serve(self, group: Any, timeout: timedelta) -> None:
        receives = {peer: as_tensor(self._payloads[peer]) for peer in self._senders}
        exchange_directly(group, receives, {}, _PAYLOAD_TAG, timeout)
        sends = {peer: self._message(peer) for peer in range(1, len(self._payloads))}
        exchange_directly(group, {}, sends, _PAYLOAD_TAG, timeout)

    def _exchange(self, group: Any, timeout: timedelta) -> None:
        received = group.recv([self._message(self._rank)], HUB, _PAYLOAD_TAG)
        if self._rank in self._senders:
            wait_for(group.send([as_tensor(self._payloads[self._rank])], HUB, _PAYLOAD_TAG), timeout, HUB)
        wait_for(received, timeout, HUB)

    def _message(self, peer: int) -> "torch.Tensor":
        """What the hub sends to a peer: all payloads, but for the last rank's own, which is easy to leave out."""
        last = len(self._payloads) - 1
        return as_tensor(
            self._block[: len(self._block) - align(len(self._payloads[last]))] if peer == last else self._block
        )


class DirectChunk:
    """One chunk of a direct round 2: what lies between `start` and `stop` of every payload."""

    def __init__(self, incoming: dict[int, memoryview], outgoing: "dict[int, Stream]", start: int, stop: int) -> None:
        self._receives = {peer: as_tensor(view[start:stop]) for peer, view in incoming.items() if start < len(view)}
        self._sends = {peer: stream.chunk(start, stop) for peer, stream in outgoing.items() if start < stream.nbytes}

    def run(self, group: Any, timeout: timedelta) -> None:
        """Exchanges the chunk; an `Exchange`."""
        exchange_directly(group, self._receives, self._sends, _CHUNK_TAG, timeout)


class Stream:
    """A payload in parts, cut into chunks: views where a chunk lies in one part, else copied together once."""

    def __init__(self, parts: Sequence[memoryview], nbytes: int) -> None:
        self.nbytes = nbytes
        self._parts = parts
        self._range = (0, 0)
        self._chunk: Any = None

    def chunk(self, start: int, stop: int) -> "torch.Tensor":
        """Bytes `start` to `stop`, or to the end; asked for once per peer, in order."""
        if (start, stop) != self._range or self._chunk is None:
            stop_here = min(stop, self.nbytes)
            views = list(pieces(self._parts, start, stop_here))
            if len(views) == 1:
                self._chunk = as_tensor(views[0])
            else:
                joined = aligned_buffer(stop_here - start)
                copy_pieces(joined, self._parts, start, stop_here)
                self._chunk = as_tensor(joined)
            self._range = (start, stop)
        return self._chunk  # type: ignore[no-any-return]
