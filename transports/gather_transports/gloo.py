"""CPU bytes between any hosts, over Gloo connections of our own.

The connections are a `ProcessGroupGloo` of this transport alone, made over the group's store, in which only members
take part; so a timeout here cannot break the job's own group, and two Gatherers cannot cross. (`new_group` called by
members only makes a later world-wide one hang.)

How slots travel is a table, in `gloo_choice.py`: through a hub, by all_to_all, or directly. Each sends what is filled
and not what the slot could hold; so hub and all_to_all carry payloads larger than a slot in round 1, up to 1 MiB within
the bounds of the table. Round 2 is direct, exact, and in chunks.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from gather_core.chunks import copy_pieces
from gather_core.deadline import Deadline
from gather_core.errors import TransportError
from gather_core.transport import Capabilities, GroupContext, PeerState, Transport
from gather_transports.gloo_choice import ALL_TO_ALL_UP_TO_NBYTES, BY_TABLE, CHUNK_NBYTES, Choice
from gather_transports.gloo_exchanges import (
    HUB,
    AllToAllSlots,
    DirectChunk,
    DirectSlots,
    HubSlots,
    SlotExchange,
    SpokeSlots,
    Stream,
)
from gather_transports.gloo_link import Exchange, GlooLink

T = TypeVar("T")


class GlooTransport(Transport):
    """Gloo over TCP, between any hosts, over connections of its own: docs/gloo.md.

    Args:
        chunk_nbytes: A direct round 2 sends this many bytes at a time to each peer; each chunk renews the deadline.
        hub_up_to_nbytes: The most that rank 0 may have to send, in bytes, for an exchange to go through it; -1: by the
            table.
        all_to_all_up_to_nbytes: Slots up to this size use an all_to_all where no hub is used.
    """

    name = "gloo"
    capabilities = Capabilities(locality="any", elastic_slots=True, death_detection="fast")

    def __init__(
        self,
        *,
        chunk_nbytes: int = CHUNK_NBYTES,
        hub_up_to_nbytes: int = BY_TABLE,
        all_to_all_up_to_nbytes: int = ALL_TO_ALL_UP_TO_NBYTES,
    ) -> None:
        if chunk_nbytes < 1 or hub_up_to_nbytes < -1 or all_to_all_up_to_nbytes < 0:
            raise ValueError("chunk_nbytes must be at least 1, the others at least 0 (hub_up_to_nbytes: or -1)")
        self._chunk_nbytes = chunk_nbytes
        self._hub_up_to_nbytes = hub_up_to_nbytes
        self._all_to_all_up_to_nbytes = all_to_all_up_to_nbytes
        self._link: GlooLink | None = None
        self._world_size = 0

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_gloo_available():
            return "this build of torch has no Gloo"
        return None

    @property
    def spec(self) -> str:
        from gather_core.spec import format_spec

        options = {
            "chunk_nbytes": (self._chunk_nbytes, CHUNK_NBYTES),
            "hub_up_to_nbytes": (self._hub_up_to_nbytes, BY_TABLE),
            "all_to_all_up_to_nbytes": (self._all_to_all_up_to_nbytes, ALL_TO_ALL_UP_TO_NBYTES),
        }
        return format_spec(self.name, {key: value for key, (value, default) in options.items() if value != default})

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._rank = context.rank
        self._world_size = context.world_size
        self._slot_nbytes = slot_nbytes
        self._peers = [peer for peer in range(context.world_size) if peer != context.rank]
        self._choice = Choice(
            context.world_size,
            num_hosts=len(set(context.hosts)),
            hub_up_to_nbytes=self._hub_up_to_nbytes,
            all_to_all_up_to_nbytes=self._all_to_all_up_to_nbytes,
        )
        self._slots = self._make_slot_exchange()
        if self._peers:
            self._link = GlooLink(context, timeout_s, self.check_interrupt)

    def _make_slot_exchange(self) -> SlotExchange:
        rank, world_size = self._rank, self._world_size
        way, nbytes = self._choice.round_1(self._slot_nbytes)
        match way:
            case "hub":
                return HubSlots(world_size, nbytes) if rank == HUB else SpokeSlots(rank, world_size, nbytes)
            case "all_to_all":
                return AllToAllSlots(rank, world_size, nbytes)
            case "direct":
                return DirectSlots(rank, world_size, nbytes)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    @property
    def round_1_nbytes(self) -> int:
        return len(self._slots.slot)

    def slot(self, nbytes: int) -> memoryview:
        return self._slots.slot[:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if self._world_size == 1:
            return [self._slots.slot[:nbytes].toreadonly()]
        self._slots.nbytes = nbytes
        return self._perform(self._slots, Deadline(timeout_s))

    def all_gather_exact(
        self,
        parts: Sequence[memoryview],
        nbytes_per_rank: Sequence[int],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        own_nbytes = nbytes_per_rank[self._rank]
        outgoing = Stream(parts, own_nbytes)
        self._exchange_chunks(
            {peer: into[peer] for peer in self._peers if nbytes_per_rank[peer]},
            {peer: outgoing for peer in self._peers if own_nbytes},
            timeout_s,
            lambda: copy_pieces(into[self._rank], parts, 0, own_nbytes),
        )
        return into

    def all_to_all_exact(
        self,
        parts_per_peer: Sequence[Sequence[memoryview]],
        nbytes_matrix: Sequence[Sequence[int]],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        rank = self._rank
        sent = nbytes_matrix[rank]
        self._exchange_chunks(
            {peer: into[peer] for peer in self._peers if nbytes_matrix[peer][rank]},
            {peer: Stream(parts_per_peer[peer], sent[peer]) for peer in self._peers if sent[peer]},
            timeout_s,
            lambda: copy_pieces(into[rank], parts_per_peer[rank], 0, sent[rank]),
        )
        return into

    def _exchange_chunks(
        self,
        incoming: dict[int, memoryview],
        outgoing: dict[int, Stream],
        timeout_s: float,
        meanwhile: Callable[[], None],
    ) -> None:
        """Exchanges payloads directly, chunk by chunk; `meanwhile` runs while the first chunk is under way."""
        deadline = Deadline(timeout_s)
        size = self._chunk_nbytes
        longest = max((*map(len, incoming.values()), *(stream.nbytes for stream in outgoing.values())), default=0)
        if longest == 0:
            meanwhile()
        for start in range(0, longest, size):
            chunk = DirectChunk(incoming, outgoing, start, start + size)
            self._perform(chunk, deadline, meanwhile if start == 0 else None)
            deadline.renew()

    def _perform(self, exchange: Exchange[T], deadline: Deadline, meanwhile: Callable[[], None] | None = None) -> T:
        if self._link is None:
            raise TransportError("the transport is not open")
        return self._link.perform(exchange, deadline, self.check_interrupt, meanwhile)

    def peers(self) -> list[PeerState]:
        states = [PeerState.UNKNOWN] * self._world_size
        states[self._rank] = PeerState.ALIVE
        return states

    def abort(self, reason: str) -> None:
        if self._link is not None:
            self._link.abort(reason)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
