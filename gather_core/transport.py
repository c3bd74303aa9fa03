"""The transport seam: bytes between the ranks of one group. A transport never sees an object."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, ClassVar, Literal, Protocol

from gather_core.bell import Bell
from gather_core.codec import Trust
from gather_core.memory import UNBOUNDED

__all__ = ["Capabilities", "GroupContext", "PeerState", "Store", "Transport"]


DEFAULT_TIMEOUT_S = 600.0
"""Of a group that has no timeout of its own."""


class PeerState(Enum):
    """What a transport knows of a peer's process."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Capabilities:
    """What a transport can and cannot do; asked instead of its name."""

    locality: Literal["process", "host", "any"]
    """How far apart its ranks may be."""
    devices: frozenset[str] = frozenset({"cpu"})
    """Where its slots lie."""
    elastic_slots: bool = False
    """Round 1 can carry more than the slot size; `Transport.round_1_nbytes` says how much."""
    deadline: bool = True
    """It gives up at `timeout_s`; False where the library below cannot."""
    death_detection: Literal["fast", "timeout", "none"] = "timeout"
    """How the death of a peer shows: at once, by the deadline, or never."""
    crosses_wire: bool = True
    """Bytes cross a wire or a device, so that large payloads are checksummed too."""
    trust: Trust = Trust.DATA
    """CODE: what carries the bytes can execute code that a peer chose, whatever the codec; as unpickling does."""
    lasting_views: bool = False
    """What an exchange returns stays as it is until the next one, also where `slot` is called in between; so it can
    be the transport inside a host that `hierarchical` joins with one between hosts."""
    needs_whole_group: bool = False
    """It serves the group that `join` has found, and no part of it."""
    shares_group: bool = False
    """It uses the job's own group, so never beside another collective of that group."""


class Store(Protocol):
    """The part of `torch.distributed.Store` that gather-core uses; any of torch's stores fits."""

    def set(self, key: str, value: Any, /) -> None: ...  # noqa: D102
    def get(self, key: str, /) -> bytes: ...  # noqa: D102
    def add(self, key: str, amount: int, /) -> int: ...  # noqa: D102
    def check(self, keys: list[str], /) -> bool: ...  # noqa: D102
    def wait(self, keys: list[str], timeout: timedelta, /) -> None: ...  # noqa: D102
    def compare_set(self, key: str, expected: Any, desired: Any, /) -> bytes: ...  # noqa: D102
    def delete_key(self, key: str, /) -> bool: ...  # noqa: D102
    def clone(self) -> "Store": ...  # noqa: D102


@dataclass(frozen=True)
class GroupContext:
    """One rank's view of the group that a transport is to connect."""

    rank: int
    """This rank, in group ranks."""
    world_size: int
    store: Store
    """As `join` returns it, shared by the Gatherers of the group; as `open` gets it, private to one of them."""
    bell: Bell
    """Wakes other ranks of the job to look into the store."""
    ranks: tuple[int, ...]
    """Global rank of each group rank."""
    name: str = "world"
    """The group's name, for messages and logs."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """The group's own timeout, in seconds."""
    process_group: object = None
    """What the group is made of: the torch ProcessGroup, or whatever else the transport's `join` brings."""
    scope: str = ""
    """As `open` gets it: names this Gatherer and its transport within the job, alike on all its ranks."""
    hosts: tuple[int, ...] = ()
    """As `open` gets it: the host of each group rank, as a number; the same on all ranks. Where `join` returns it, the
    ranks do not look for it themselves."""


def _never() -> None:
    """The default of `check_interrupt`: nothing can interrupt the wait."""


class Transport(ABC):
    """Moves bytes between the ranks of one group; knows nothing about objects.

    Collective: every rank of the group makes the same calls in the same order, from one thread at a time; only
    `abort`, `peers` and `close` are different. A Transport object serves one Gatherer and is closed with it.
    After any exception of a verb the transport is unusable: later verbs raise a `TransportError`, and only `abort` and
    `close` may follow. A rank whose verb fails aborts, so that word of a failure goes round from rank to rank.

    Views that a verb returns are borrowed until this rank's next call of `slot`, a verb or `close`. Nothing that other
    ranks do changes them before, nor does `abort`. Those that are writable, see `may_give`, are the caller's for good.
    """

    name: ClassVar[str]
    """The registry key, lower case."""
    capabilities: ClassVar[Capabilities]
    """What it can do and what it needs; the Gatherer asks for this, and never for the name."""

    check_interrupt: Callable[[], None] = staticmethod(_never)
    """Set by the Gatherer before `open`; waits call it at least every 0.25 s and let what it raises pass: another
    rank's abort. Cheap, and callable from any thread."""

    taken: bool = False
    """Set by the Gatherer that opens it, for good."""

    may_give: bool = False
    """Set by the Gatherer before `all_gather_slots` and `all_gather_exact`: what this rank sends may come out of them
    as writable memory, on any rank, which is the caller's for as long as anything refers to it. It is set where large
    parts of the payload will be kept, which then need not be copied."""

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        """Returns why it cannot run here (for this group, where one is given), or None. Cheap; opens nothing."""
        del context
        return None

    @classmethod
    def join(cls, group: object) -> GroupContext:
        """Finds out who this rank is; default: torch.distributed's process groups and 1-D device meshes.

        Raises:
            ValueError: This rank is not in `group`.
            TypeError: `group` is nothing that this transport understands.
        """
        from gather_core.process_group import join_process_group

        return join_process_group(group)

    @classmethod
    def join_within(cls, group: object, *, timeout_s: float) -> GroupContext:
        """Calls `join`, as Gatherers do it: waits no longer than that, and can be interrupted. Default: on a thread.

        Override it where `join` itself waits for other ranks, and can give up by itself.

        Raises:
            TimeoutError: `join` has not returned within `timeout_s` seconds; it goes on.
            SetupError: What an override has to say instead, or of another rank.
            ValueError, TypeError: As `join`.
        """
        from gather_core.background import run_bounded

        return run_bounded(lambda: cls.join(group), timeout_s)

    @property
    def spec(self) -> str:
        """The canonical spec string: name and the options that differ from the default."""
        return self.name

    def fingerprint(self) -> str:
        """Equal on ranks whose transports fit together; compared in round 0, before `open`."""
        return self.spec

    @abstractmethod
    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        """(all ranks) Connects the group. Round 0 has already shown that all ranks agree on `slot_nbytes` and options.

        Args:
            context: This rank's place. `context.store` may be used for the rendezvous: what this rank writes there is
                deleted when all ranks have opened; what it writes later it deletes itself, and soon.
            slot_nbytes: Size of each rank's slot in bytes, a multiple of 64.
            timeout_s: Seconds until this rank gives up.

        Raises:
            TransportError: No connection. Nothing is left behind.
        """

    @abstractmethod
    def slot(self, nbytes: int) -> memoryview:
        """Returns at least `nbytes` of this rank's slot, writable and 64-byte aligned, to encode into in place.

        Valid until `all_gather_slots`. Never fails for `nbytes <= slot_nbytes` after `open`, and may raise MemoryError
        for more; never asked for more than `round_1_nbytes`.
        """

    @abstractmethod
    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        """(all ranks) Round 1: exchanges the slots; blocks until every rank's has arrived.

        Args:
            nbytes: How much of `slot()` this rank has filled, in bytes. It may differ between ranks.
            timeout_s: Seconds until this rank gives up; greater than 0.

        Returns:
            One read-only, 64-byte aligned view per group rank, at least as long as that rank has filled; borrowed.
            Bytes beyond what a rank has filled mean nothing.

        Raises:
            TransportTimeoutError: A peer is late.
            PeerLostError: A peer died.
        """

    def all_gather_exact(
        self,
        parts: Sequence[memoryview],
        nbytes_per_rank: Sequence[int],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        """(all ranks) Round 2: every rank gets every payload; default: in chunks through round 1.

        Args:
            parts: This rank's payload as byte views in order; together `nbytes_per_rank[rank]` bytes. Never joined.
            nbytes_per_rank: Payload of each rank in bytes; the same on every rank; 0 for those that send nothing.
            into: For each group rank, writable memory for its payload: of exactly its length, aligned to 64.
            timeout_s: Seconds until this rank gives up, counted anew from each chunk that has arrived.

        Returns:
            The payload of each group rank: `into[rank]`, or a borrowed read-only view of other memory, aligned to 64.

        Raises:
            TransportTimeoutError: A peer is late.
            PeerLostError: A peer died.
        """
        from gather_core.chunks import all_gather_by_slots

        return all_gather_by_slots(self, parts, nbytes_per_rank, into=into, timeout_s=timeout_s)

    def all_to_all_exact(
        self,
        parts_per_peer: Sequence[Sequence[memoryview]],
        nbytes_matrix: Sequence[Sequence[int]],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        """(all ranks) Round 2, routed: every rank gets what is meant for it; default: through `all_gather_exact`.

        Args:
            parts_per_peer: For each group rank, this rank's payload for it, as parts in order.
            nbytes_matrix: `nbytes_matrix[src][dst]`, in bytes, the same on every rank.
            into: For each group rank, writable memory for what it sends to this one, as in `all_gather_exact`.
            timeout_s: Seconds until this rank gives up, counted anew from each chunk that has arrived.

        Returns:
            What each group rank sent to this one, as in `all_gather_exact`.

        Raises:
            TransportTimeoutError: A peer is late.
            PeerLostError: A peer died.
        """
        from gather_core.chunks import all_to_all_by_all_gather

        return all_to_all_by_all_gather(self, parts_per_peer, nbytes_matrix, into=into, timeout_s=timeout_s)

    @property
    @abstractmethod
    def rank(self) -> int:
        """This rank, in group ranks, once open."""

    @property
    @abstractmethod
    def slot_nbytes(self) -> int:
        """The slot size given to `open`, in bytes."""

    @property
    def round_1_nbytes(self) -> int:
        """The most of a slot that round 1 carries, in bytes, once open; the same on every rank, so that all know what
        is left to round 2. Default: `slot_nbytes`, or without bound where slots are elastic.
        """
        return UNBOUNDED if self.capabilities.elastic_slots else self.slot_nbytes

    def peers(self) -> list[PeerState]:
        """Returns one state per group rank, as far as is known without asking anybody."""
        return []

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Makes peers that wait for this rank fail as soon as the medium allows. Idempotent, any thread, never blocks.

        Peers that wait for others learn of it from those, which abort in turn, or from the Gatherer's notes.

        A thread of this rank that is inside a verb leaves it with a `TransportError`, at the latest by its deadline.
        """

    @abstractmethod
    def close(self) -> None:
        """Gives everything back. Idempotent, never collective, never raises; works in a forked child too."""
