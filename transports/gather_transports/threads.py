"""Ranks that are threads of one process: the oracle of the tests, and a way to try a job without launching one."""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from gather_core.deadline import POLL_S
from gather_core.errors import AbortedError, TransportError, TransportTimeoutError, format_ranks
from gather_core.local_store import LocalBell, LocalStore
from gather_core.memory import aligned_buffer
from gather_core.transport import Capabilities, GroupContext, PeerState, Transport

T = TypeVar("T")
_names = itertools.count()


class ThreadGroup:
    """A group whose ranks are threads: `Gatherer(transport="threads", group=ThreadGroup(4).member(rank))`."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.name = f"threads-{next(_names)}"
        self.store = LocalStore()
        self.bell = LocalBell()
        self._hubs: dict[str, _Hub] = {}
        self._lock = threading.Lock()

    def member(self, rank: int) -> "ThreadRank":
        """Returns one rank's handle, to be given to its Gatherer as `group`."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is not in a group of {self.world_size}")
        return ThreadRank(self, rank)

    def run(self, body: Callable[["ThreadRank"], T]) -> list[T | BaseException]:
        """Runs `body` once per rank, each in a thread; returns what each returned or raised, in rank order."""
        outcomes: list[Any] = [None] * self.world_size

        def run_rank(rank: int) -> None:
            try:
                outcomes[rank] = body(self.member(rank))
            except BaseException as exc:
                outcomes[rank] = exc

        threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes

    def hub(self, scope: str, world_size: int) -> "_Hub":
        """The meeting point of so many ranks of one Gatherer."""
        with self._lock:
            return self._hubs.setdefault(scope, _Hub(world_size))

    def drop_hub(self, scope: str) -> None:
        """Forgets it; ranks that hold it go on using it."""
        with self._lock:
            self._hubs.pop(scope, None)


@dataclass(frozen=True)
class ThreadRank:
    """One rank of a ThreadGroup."""

    group: ThreadGroup
    rank: int


@dataclass
class _Hub:
    """What the ranks of one Gatherer share; `changed` guards all of it."""

    world_size: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    rounds: list[int] = field(init=False)
    """How many rounds each rank has entered."""
    filled: list[list[memoryview]] = field(init=False)
    """Two views per rank, of even and odd rounds: a rank is at most one round ahead of its readers."""
    aborted: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        self.rounds = [0] * self.world_size
        self.filled = [[memoryview(b"")] * 2 for _ in range(self.world_size)]


class ThreadsTransport(Transport):
    """Each rank publishes a view of its own buffer; readers borrow it. No byte is copied."""

    name = "threads"
    capabilities = Capabilities(
        locality="process", elastic_slots=True, death_detection="timeout", crosses_wire=False, lasting_views=True
    )

    def __init__(self) -> None:
        self._hub = _Hub(0)
        self._group: ThreadGroup | None = None
        self._scope = ""
        self._rank = 0
        self._slot_nbytes = 0
        self._has_failed = False
        self._buffers = [memoryview(b""), memoryview(b"")]

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        if context is not None and not isinstance(context.process_group, ThreadGroup):
            return "it needs group=ThreadGroup(world_size).member(rank)"
        return None

    @classmethod
    def join(cls, group: object) -> GroupContext:
        if not isinstance(group, ThreadRank):
            return super().join(group)
        team = group.group
        return GroupContext(
            rank=group.rank,
            world_size=team.world_size,
            store=team.store,
            bell=team.bell,
            ranks=tuple(range(team.world_size)),
            name=team.name,
            process_group=team,
            hosts=(0,) * team.world_size,
        )

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if not isinstance(context.process_group, ThreadGroup):
            raise TransportError("threads needs group=ThreadGroup(world_size).member(rank)")
        self._group = context.process_group
        self._scope = context.scope
        self._rank = context.rank
        self._slot_nbytes = slot_nbytes
        self._buffers = [aligned_buffer(slot_nbytes), aligned_buffer(slot_nbytes)]
        self._hub = self._group.hub(context.scope, context.world_size)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def _turn(self) -> int:
        return self._hub.rounds[self._rank] % 2

    def slot(self, nbytes: int) -> memoryview:
        turn = self._turn()
        if nbytes > len(self._buffers[turn]) or nbytes <= self._slot_nbytes < len(self._buffers[turn]):
            self._buffers[turn] = aligned_buffer(max(nbytes, self._slot_nbytes))
        return self._buffers[turn][:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if self._has_failed:
            raise TransportError("an earlier exchange failed")
        hub = self._hub
        turn = self._turn()
        self._has_failed = True  # unless it gets to the end
        with hub.changed:
            hub.filled[self._rank][turn] = self._buffers[turn][:nbytes].toreadonly()
            hub.rounds[self._rank] += 1
            hub.changed.notify_all()
            self._wait_for(hub.rounds[self._rank], timeout_s)
            self._has_failed = False
            return [views[turn] for views in hub.filled]

    def _wait_for(self, round_number: int, timeout_s: float) -> None:
        hub = self._hub
        deadline = monotonic() + timeout_s
        while min(hub.rounds) < round_number:
            self.check_interrupt()  # first: it names the rank that began, the hub the first that got here
            if hub.aborted is not None:
                rank, reason = hub.aborted
                raise AbortedError(f"rank {rank} aborted: {reason}", rank)
            remaining_s = deadline - monotonic()
            if remaining_s <= 0:
                late = [rank for rank, rounds in enumerate(hub.rounds) if rounds < round_number]
                raise TransportTimeoutError(f"{format_ranks(late)} did not come within {timeout_s:g} s", late)
            hub.changed.wait(min(remaining_s, POLL_S))

    def peers(self) -> list[PeerState]:
        return [PeerState.UNKNOWN] * self._hub.world_size

    def abort(self, reason: str) -> None:
        with self._hub.changed:
            if self._hub.aborted is None:
                self._hub.aborted = (self._rank, reason)
            self._hub.changed.notify_all()

    def close(self) -> None:
        if self._group is not None:
            self._group.drop_hub(self._scope)
            self._group = None
