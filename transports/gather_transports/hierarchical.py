"""Shared memory inside a host, one leader per host between hosts: `"shm+gloo"`, or any two transports.

Every rank exchanges its slot with those of its host; the leaders, the lowest ranks of their hosts, exchange one block
each; then each leader publishes inside its host what all hosts sent. So what leaves a host is about the sum of its
payloads, whatever the number of its ranks, and lands in the host's shared memory, where its ranks read it.

Larger payloads go the same way, a chunk of each host's at a time, so that the shared memory that they need is bounded.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from gather_core.deadline import Deadline
from gather_core.errors import TransportError, TransportTimeoutError, summarize
from gather_core.memory import align
from gather_core.transport import Capabilities, GroupContext, PeerState, Transport
from gather_transports.host_blocks import (
    LONGEST_FAILURE_NBYTES,
    STATUS_NBYTES,
    block_nbytes,
    chunk_nbytes,
    filled_nbytes,
    longest_slot,
    raise_failure,
    read_block,
    write_block,
    write_failure,
)
from gather_transports.host_failures import in_group_ranks
from gather_transports.host_map import HostMap, context_among
from gather_transports.host_routes import Route, all_gather_route, all_to_all_route

T = TypeVar("T")
_log = logging.getLogger("gather_core")

_PREFIX_NBYTES = 64
"""In front of each slot inside a host: how much of it is filled, as a little-endian u64."""
_GRACE_S = 0.5
"""What leaders wait for each other beyond the deadline, to hear who did not come inside a host; a host waits twice as
long for its leader. In seconds."""


class HierarchicalTransport(Transport):
    """Joins one transport inside each host and one between hosts, as in the spec "shm+gloo": docs/hierarchical.md.

    Args:
        inner: Inside a host. Its slots must grow with what they carry, and what it returns must stay until the next
            exchange: `shm`, or `threads`.
        outer: Between the leaders.
    """

    name = "hierarchical"

    def __init__(self, inner: Transport, outer: Transport) -> None:
        self._inner, self._outer = inner, outer
        # Who the ranks are, the transport between hosts knows.
        self.join, self.join_within = outer.join, outer.join_within  # type: ignore[method-assign]
        self.unavailable = self._unavailable  # type: ignore[method-assign]
        self._map = HostMap(0, ((0,),), 0)
        self._slot_nbytes = 0
        self._round_1_nbytes = 0
        self._mine = memoryview(b"")
        self._has_failed = False
        self._opened: list[Transport] = []
        self._check: Callable[[], None] = inner.check_interrupt
        self._interrupt: BaseException | None = None

    def _unavailable(self, context: GroupContext | None) -> str | None:
        for part in (self._inner, self._outer):
            if reason := part.unavailable(context):
                return f"{part.name}: {reason}"
        if self._outer.capabilities.needs_whole_group:
            return f"{self._outer.name} cannot be the transport between hosts: it needs all ranks, not only the leaders"
        return None

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What both can do; how far apart the ranks may be is up to the outer one."""
        inner, outer = self._inner.capabilities, self._outer.capabilities
        order = ("fast", "timeout", "none")
        return Capabilities(
            locality=outer.locality,
            devices=outer.devices,
            elastic_slots=True,
            deadline=inner.deadline and outer.deadline,
            death_detection=max(inner.death_detection, outer.death_detection, key=order.index),
            crosses_wire=True,
            trust=outer.trust if inner.trust.value == "data" else inner.trust,
            shares_group=inner.shares_group or outer.shares_group,
        )

    @property
    def check_interrupt(self) -> Callable[[], None]:
        """What both call while they wait."""
        return self._check

    @check_interrupt.setter
    def check_interrupt(self, check: Callable[[], None]) -> None:
        self._check = check  # which those that are opened call through `_note_interrupt`

    def _note_interrupt(self) -> None:
        """Lets an interrupt pass, and remembers it: it names group ranks, other than what the transports raise."""
        try:
            self._check()
        except BaseException as exc:
            self._interrupt = exc
            raise

    @property
    def spec(self) -> str:
        return f"{self._inner.spec}+{self._outer.spec}"

    def fingerprint(self) -> str:
        return f"{self._inner.fingerprint()}+{self._outer.fingerprint()}"

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if any(part.taken for part in (self._inner, self._outer)):
            raise TransportError("one of its transports belongs to another Gatherer already: give each one of its own")
        if not (self._inner.capabilities.elastic_slots and self._inner.capabilities.lasting_views):
            raise TransportError(f"{self._inner.name} cannot be the transport inside a host: use shm, as in 'shm+gloo'")
        deadline = Deadline(timeout_s)
        self._map = HostMap.of(context.rank, context.hosts or (0,) * context.world_size)
        self._slot_nbytes = slot_nbytes
        try:
            self._open_inner(context, deadline)
        except TransportError as exc:
            self._raise(exc, self._map.here, "inside the host")
        if self._map.num_hosts == 1:
            self._round_1_nbytes = self._inner.round_1_nbytes
            return
        nbytes = 0
        if self._map.leads:
            try:
                nbytes = self._open_outer(context, deadline)
            except TransportError as exc:
                self._raise(exc, self._map.leaders, "between hosts")
        self._round_1_nbytes = max(self._told_by_leader(nbytes, context, deadline), self._slot_nbytes)

    def _open_inner(self, context: GroupContext, deadline: Deadline) -> None:
        here = self._map.here
        inside = context_among(context, f"host-{self._map.host}", here, (0,) * len(here))
        nbytes = max(_PREFIX_NBYTES + self._slot_nbytes, LONGEST_FAILURE_NBYTES)
        self._open(self._inner, inside, nbytes, deadline)

    def _open(self, part: Transport, context: GroupContext, slot_nbytes: int, deadline: Deadline) -> None:
        part.taken = True
        part.check_interrupt = self._note_interrupt
        self._opened.append(part)
        part.open(context, align(slot_nbytes), timeout_s=deadline.remaining_s())

    def _open_outer(self, context: GroupContext, deadline: Deadline) -> int:
        """(leaders) Connects them; returns how much of a slot round 1 carries."""
        most, leaders = self._map.most_on_one_host, self._map.leaders
        between = context_among(context, "leaders", leaders, tuple(range(len(leaders))))
        nbytes = max(block_nbytes(most, self._slot_nbytes), LONGEST_FAILURE_NBYTES)
        context.store.set(_leader_key(self._map.rank), "")
        self._open(self._outer, between, nbytes, deadline)
        return longest_slot(self._outer.round_1_nbytes, most)

    def _told_by_leader(self, nbytes: int, context: GroupContext, deadline: Deadline) -> int:
        """(all ranks) Returns what the leader of this host hands in."""
        told = self._inner.slot(_PREFIX_NBYTES)
        told[:8] = nbytes.to_bytes(8, "little")
        try:
            return int.from_bytes(self._exchange_inside(_PREFIX_NBYTES, deadline)[0][:8], "little")
        except TransportTimeoutError as exc:
            if self._map.leads:
                raise
            late = [rank for rank in self._map.leaders if not context.store.check([_leader_key(rank)])]
            raise TransportTimeoutError("not all leaders of hosts came to connect in time", late) from exc

    @property
    def rank(self) -> int:
        return self._map.rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    @property
    def round_1_nbytes(self) -> int:
        return self._round_1_nbytes

    def slot(self, nbytes: int) -> memoryview:
        if self._map.num_hosts == 1:
            return self._inner.slot(nbytes)
        self._mine = self._inner.slot(_PREFIX_NBYTES + nbytes)
        return self._mine[_PREFIX_NBYTES:]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if self._map.num_hosts == 1:  # else what a leader publishes is of all ranks, and whoever kept a part kept all
            self._inner.may_give = self.may_give
            return self._inner.all_gather_slots(nbytes, timeout_s=timeout_s)
        if len(self._mine) < _PREFIX_NBYTES + nbytes:
            self.slot(nbytes)
        mine, self._mine = self._mine, memoryview(b"")
        mine[:8] = nbytes.to_bytes(8, "little")
        self._begin()
        slots = self._exchange_slots(_PREFIX_NBYTES + nbytes, Deadline(timeout_s))
        self._has_failed = False
        return slots

    def _begin(self) -> None:
        if self._has_failed:
            raise TransportError("an earlier exchange failed")
        self._has_failed = True  # unless it gets to the end

    def _exchange_slots(self, nbytes: int, deadline: Deadline) -> Sequence[memoryview]:
        block_size = 0
        if self._map.leads:
            blocks = self._exchange_blocks(self._slots_of_host(nbytes, deadline), deadline)
            slots = self._in_rank_order(blocks, deadline)
            block_size = filled_nbytes(slots)
            write_block(self._inner.slot(block_size), slots)
        else:
            self._exchange_inside(nbytes, deadline)
        return read_block(self._published(block_size, deadline), self._map.world_size)

    def _slots_of_host(self, nbytes: int, deadline: Deadline) -> list[memoryview]:
        """(leader) The slots of this host, each as long as it is filled; where they do not come, others are told."""
        try:
            views = self._exchange_inside(nbytes, deadline)
        except TransportError as exc:
            self._tell("other hosts", self._outer, exc, _GRACE_S)
            raise
        lengths = [int.from_bytes(view[:8], "little") for view in views]
        return [view[_PREFIX_NBYTES : _PREFIX_NBYTES + length] for view, length in zip(views, lengths, strict=True)]

    def _exchange_blocks(self, slots: Sequence[memoryview], deadline: Deadline) -> Sequence[memoryview]:
        """(leader) Sends this host's block and returns those of all hosts."""
        nbytes = filled_nbytes(slots)
        write_block(self._outer.slot(nbytes), slots)
        return self._between_hosts(
            lambda timeout_s: self._outer.all_gather_slots(nbytes, timeout_s=timeout_s), deadline
        )

    def _in_rank_order(self, blocks: Sequence[memoryview], deadline: Deadline) -> list[memoryview]:
        """(leader) The slots of all ranks; where a host reports a failure, it is told inside too, and raised."""
        slots = [memoryview(b"")] * self._map.world_size
        try:
            for members, block in zip(self._map.members, blocks, strict=True):
                for rank, slot in zip(members, read_block(block, len(members)), strict=True):
                    slots[rank] = slot
        except TransportError as exc:
            self._tell("own host", self._inner, exc, _GRACE_S)
            raise
        return slots

    def all_gather_exact(
        self,
        parts: Sequence[memoryview],
        nbytes_per_rank: Sequence[int],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        if self._map.num_hosts == 1:
            self._inner.may_give = self.may_give
            return self._inner.all_gather_exact(parts, nbytes_per_rank, into=into, timeout_s=timeout_s)
        return self._exchange_payloads(all_gather_route(self._map, parts, nbytes_per_rank), into, timeout_s)

    def all_to_all_exact(
        self,
        parts_per_peer: Sequence[Sequence[memoryview]],
        nbytes_matrix: Sequence[Sequence[int]],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        if self._map.num_hosts == 1:
            return self._inner.all_to_all_exact(parts_per_peer, nbytes_matrix, into=into, timeout_s=timeout_s)
        return self._exchange_payloads(all_to_all_route(self._map, parts_per_peer, nbytes_matrix), into, timeout_s)

    def _exchange_payloads(self, route: Route, into: Sequence[memoryview], timeout_s: float) -> Sequence[memoryview]:
        self._begin()
        deadline = Deadline(timeout_s)
        size = chunk_nbytes(self._map.num_hosts)
        for start in range(0, route.longest_nbytes, size):
            self._exchange_chunk(route, start, start + size, into, deadline)
            deadline.renew()
        self._has_failed = False
        return into

    def _exchange_chunk(
        self, route: Route, start: int, stop: int, into: Sequence[memoryview], deadline: Deadline
    ) -> None:
        """Collects a chunk inside the host, exchanges it between hosts, and reads what all hosts sent.

        Where the first of these fails, no message tells the other hosts, as in round 1: one of another length can end
        the process that receives it. They hear of it by the abort.
        """
        landed_nbytes = 0
        if self._map.leads:
            landed_nbytes = self._land(route, start, stop, self._exchange_inside(0, deadline), deadline)
        else:
            self._exchange_inside(self._upload(route, start, stop), deadline)
        published = self._published(landed_nbytes, deadline)
        raise_failure(published)
        route.take(start, stop, published[STATUS_NBYTES:], into)

    def _land(self, route: Route, start: int, stop: int, uploads: Sequence[memoryview], deadline: Deadline) -> int:
        """(leader) Exchanges a chunk with the other hosts, into its slot; returns how much of that it fills."""
        outgoing = route.outgoing(start, stop, dict(zip(self._map.here, uploads, strict=True)))
        nbytes = STATUS_NBYTES + route.landing_nbytes(start, stop)
        landing = self._inner.slot(nbytes)
        landing[:STATUS_NBYTES] = bytes(STATUS_NBYTES)
        targets = route.landing_places(start, stop, landing[STATUS_NBYTES:nbytes])
        arrived = self._between_hosts(
            lambda timeout_s: route.send(self._outer, outgoing, start, stop, targets, timeout_s), deadline
        )
        for target, view in zip(targets, arrived, strict=True):
            if view is not target:
                target[:] = view[: len(target)]
        return nbytes

    def _upload(self, route: Route, start: int, stop: int) -> int:
        """Writes this rank's part of a chunk into its slot inside the host; returns its length in bytes."""
        parts = route.upload(start, stop)
        nbytes = sum(map(len, parts))
        slot = self._inner.slot(nbytes)
        position = 0
        for part in parts:
            slot[position : position + len(part)] = part
            position += len(part)
        return nbytes

    def _published(self, nbytes: int, deadline: Deadline) -> memoryview:
        """The second exchange inside the host: what its leader has to say, or another host through it."""
        try:
            return self._exchange_inside(nbytes, deadline, 2 * _GRACE_S)[0]
        except TransportTimeoutError as exc:
            if self._map.leads:
                raise
            # The leader waits for others itself: it is not the one that is missing.
            text = f"rank {self._map.here[0]}, which leads this host, has not heard of all other hosts"
            raise TransportTimeoutError(text) from exc

    def _exchange_inside(self, nbytes: int, deadline: Deadline, grace_s: float = 0.0) -> Sequence[memoryview]:
        try:
            return self._inner.all_gather_slots(nbytes, timeout_s=deadline.remaining_s() + grace_s)
        except TransportError as exc:
            self._raise(exc, self._map.here, "inside the host")

    def _between_hosts(self, exchange: Callable[[float], T], deadline: Deadline) -> T:
        """(leader) Calls the outer transport; where that fails, the own host is told, which waits a little longer."""
        try:
            return exchange(deadline.remaining_s() + _GRACE_S)
        except TransportError as exc:
            try:
                self._raise(exc, self._map.leaders, "between hosts")
            except TransportError as failure:
                self._tell("own host", self._inner, failure, _GRACE_S)
                raise

    def _tell(self, whom: str, transport: Transport, failure: TransportError, timeout_s: float) -> None:
        """(leader) Sends a failure where the others wait for a block."""
        try:
            nbytes = write_failure(transport.slot(LONGEST_FAILURE_NBYTES), failure)
            transport.all_gather_slots(nbytes, timeout_s=timeout_s)
        except TransportError as exc:
            _log.debug("%s not told that this one failed: %s", whom, summarize(exc))

    def _raise(self, exc: TransportError, ranks: Sequence[int], where: str) -> NoReturn:
        """Raises what a transport has raised, in group ranks; an interrupt has them already."""
        interrupt, self._interrupt = self._interrupt, None
        if exc is interrupt:
            raise exc
        raise in_group_ranks(exc, ranks, where) from exc

    def peers(self) -> list[PeerState]:
        states = [PeerState.UNKNOWN] * self._map.world_size
        asked = [(self._inner, self._map.here)]
        if self._map.leads and self._map.num_hosts > 1:
            asked.append((self._outer, self._map.leaders))
        for transport, ranks in asked:
            for rank, state in zip(ranks, transport.peers(), strict=False):
                states[rank] = state
        return states

    def abort(self, reason: str) -> None:
        for part in self._opened:
            part.abort(reason)

    def close(self) -> None:
        for part in self._opened:  # not what belongs to another Gatherer, and so was refused
            part.close()


def _leader_key(rank: int) -> str:
    """Set by a leader that has come to connect."""
    return f"leader/{rank}"
