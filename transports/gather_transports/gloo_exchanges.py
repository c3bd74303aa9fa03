"""How bytes travel between the ranks of a Gloo group: through a hub, by all_to_all, or directly.

All of them are an `Exchange`, used for every round or made for one. That a receive may be longer than what is sent into
it, as Gloo allows, is what makes them exact: receives have the size of a slot, sends the size of what is filled.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gather_core.chunks import copy_pieces, payload_views, pieces
from gather_core.errors import ProtocolError
from gather_core.memory import ALIGNMENT, align, aligned_buffer
from gather_transports.gloo_link import as_tensor, gloo

if TYPE_CHECKING:
    import torch

HUB = 0
_SLOT_TAG = 1
_CHUNK_TAG = 2
_LENGTH = struct.Struct("<Q")
_NEVER = timedelta(days=1)
"""For what Gloo itself waits for in a collective: the link's own timeout, or its end, comes first."""


class SlotExchange(ABC):
    """Round 1: owns this rank's slot and the memory into which the others' arrive."""

    slot: memoryview
    """This rank's slot, writable."""
    nbytes = 0
    """How much of it is filled; set before `post`."""
    waits_for: int | None = None

    @abstractmethod
    def post(self, group: Any) -> None:
        """See `Exchange`."""

    @abstractmethod
    def finish(self, group: Any, timeout: timedelta) -> list[memoryview]:
        """Returns what is filled of each rank's slot, or more: read-only, valid until the next round is posted."""


class HubSlots(SlotExchange):
    """Rank 0 of an exchange in which every rank sends its slot there, and gets those of all in one message.

    The receives for a round are posted at the end of the one before, into the other of two buffers: then a peer's send
    goes out at once, where Gloo otherwise has sender and receiver notify each other first.
    """

    def __init__(self, world_size: int, slot_nbytes: int) -> None:
        self._peers = range(1, world_size)
        self._packed = PackedSlots(world_size, slot_nbytes)
        self.slot = self._packed.first_slot
        row = ALIGNMENT + slot_nbytes
        self._rows = [payload_views(aligned_buffer(row * len(self._peers)), [row] * len(self._peers)) for _ in range(2)]
        self._row_tensors = [[as_tensor(row) for row in rows] for rows in self._rows]
        self._turn = 0
        self._posted: list[Any] = []

    def post(self, group: Any) -> None:
        if not self._posted:  # in the first round only
            self._post_receives(group)

    def _post_receives(self, group: Any) -> None:
        tensors = zip(self._peers, self._row_tensors[self._turn], strict=True)
        self._posted = [gloo(group.recv, [tensor], peer, _SLOT_TAG, peer=peer) for peer, tensor in tensors]

    def finish(self, group: Any, timeout: timedelta) -> list[memoryview]:
        for work, peer in zip(self._posted, self._peers, strict=True):
            self.waits_for = peer
            gloo(work.wait, timeout, peer=peer)
        rows = self._rows[self._turn]
        lengths = self._packed.check([self.nbytes, *(_LENGTH.unpack_from(row)[0] for row in rows)])
        filled = [row[ALIGNMENT : ALIGNMENT + length] for row, length in zip(rows, lengths[1:], strict=True)]
        messages = self._packed.pack(lengths, filled)
        sends = [
            gloo(group.send, [message], peer, _SLOT_TAG, peer=peer)
            for peer, message in zip(self._peers, messages, strict=True)
        ]
        self._turn = 1 - self._turn
        self._post_receives(group)  # after the sends, which others wait for
        for work, peer in zip(sends, self._peers, strict=True):
            self.waits_for = peer
            gloo(work.wait, timeout, peer=peer)
        return [self.slot[: self.nbytes].toreadonly(), *(slot.toreadonly() for slot in filled)]


class SpokeSlots(SlotExchange):
    """Any other rank of that exchange. Its message is the length of what is filled, padded to 64 bytes, and that."""

    def __init__(self, rank: int, world_size: int, slot_nbytes: int) -> None:
        self._is_last = rank == world_size - 1
        self._packed = PackedSlots(world_size, slot_nbytes)
        self._message = aligned_buffer(ALIGNMENT + slot_nbytes)
        self._message_tensor = as_tensor(self._message)
        self.slot = self._message[ALIGNMENT:]
        self._works: tuple[Any, ...] = ()

    def post(self, group: Any) -> None:
        received = gloo(group.recv, [self._packed.tensor], HUB, _SLOT_TAG, peer=HUB)
        _LENGTH.pack_into(self._message, 0, self.nbytes)
        sent = gloo(group.send, [self._message_tensor[: ALIGNMENT + self.nbytes]], HUB, _SLOT_TAG, peer=HUB)
        self._works = (sent, received)

    def finish(self, group: Any, timeout: timedelta) -> list[memoryview]:
        for work in self._works:
            gloo(work.wait, timeout, peer=HUB)
        views = self._packed.unpack()
        if self._is_last:
            views[-1] = self.slot[: self.nbytes].toreadonly()
        return views


class PackedSlots:
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
        self._options.timeout = _NEVER
        self._work: Any = None

    def post(self, group: Any) -> None:
        nbytes = self.nbytes
        for number in range(1, self._num_peers):
            self._outgoing[number * nbytes : (number + 1) * nbytes] = self._outgoing[:nbytes]
        sends = [nbytes if length else 0 for length in self._receives]
        sent = self._outgoing_tensor[: self._num_peers * nbytes]
        self._work = gloo(group.alltoall_base, self._received_tensor, sent, self._receives, sends, self._options)

    def finish(self, group: Any, timeout: timedelta) -> list[memoryview]:
        gloo(self._work.wait, timeout)
        views = list(self._views)
        views[self._rank] = self.slot[: self.nbytes].toreadonly()
        return views


class DirectSlots(SlotExchange):
    """Every rank sends what is filled of its slot to every other, without copying it for each."""

    _messages: "_Messages"

    def __init__(self, rank: int, world_size: int, slot_nbytes: int) -> None:
        self._rank = rank
        self.slot = aligned_buffer(slot_nbytes)
        self._slot_tensor = as_tensor(self.slot)
        self._received = payload_views(aligned_buffer(world_size * slot_nbytes), [slot_nbytes] * world_size)
        self._rows = {peer: as_tensor(view) for peer, view in enumerate(self._received) if peer != rank}

    def post(self, group: Any) -> None:
        sent = self._slot_tensor[: self.nbytes]
        self._messages = _Messages(group, self._rows, dict.fromkeys(self._rows, sent), _SLOT_TAG)

    def finish(self, group: Any, timeout: timedelta) -> list[memoryview]:
        for peer in self._messages.each(timeout):
            self.waits_for = peer
        views = [view.toreadonly() for view in self._received]
        views[self._rank] = self.slot[: self.nbytes].toreadonly()
        return views


class _Messages:
    """Receives and sends, by peer, all posted at once."""

    def __init__(
        self, group: Any, receives: "Mapping[int, torch.Tensor]", sends: "Mapping[int, torch.Tensor]", tag: int
    ) -> None:
        self._works = [(peer, gloo(group.recv, [tensor], peer, tag, peer=peer)) for peer, tensor in receives.items()]
        self._works += [(peer, gloo(group.send, [tensor], peer, tag, peer=peer)) for peer, tensor in sends.items()]

    def each(self, timeout: timedelta) -> Iterator[int]:
        """Waits for one after another; says before each wait which peer it is about."""
        for peer, work in self._works:
            yield peer
            gloo(work.wait, timeout, peer=peer)


class DirectChunk:
    """One chunk of a direct round 2: what lies between `start` and `stop` of every payload."""

    waits_for: int | None = None

    def __init__(self, incoming: dict[int, memoryview], outgoing: "dict[int, Stream]", start: int, stop: int) -> None:
        self._receives = {peer: as_tensor(view[start:stop]) for peer, view in incoming.items() if start < len(view)}
        self._sends = {peer: stream.chunk(start, stop) for peer, stream in outgoing.items() if start < stream.nbytes}

    def post(self, group: Any) -> None:
        """See `Exchange`."""
        self._messages = _Messages(group, self._receives, self._sends, _CHUNK_TAG)

    def finish(self, group: Any, timeout: timedelta) -> None:
        """See `Exchange`."""
        for peer in self._messages.each(timeout):
            self.waits_for = peer


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
