"""A stream of items from every rank to one, in as many rounds as it takes, each with a bounded part of it.

In each round a rank sends a chunk: as many items as fit in its share of the budget, and one at least. The rank that
receives has no chunk, as its own items never travel: in its place it says whether the stream goes on, which keeps its
slot small enough for every rank to read it in round 1. What is left to round 2 goes as far as the budget reaches; the
other ranks keep their chunks for the next round.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from gather_core.call import Call, Manner, Received, Timeout
from gather_core.codec import Frames
from gather_core.errors import GatherError, ProtocolError
from gather_core.membership import Membership
from gather_core.slot import payload_nbytes
from gather_core.stream_chunks import Budget, Chunks, pack_chunk, unpack_chunk

T = TypeVar("T")

_GOES_ON, _ENDS = b"\0", b"\1"
"""The only frame of what the receiving rank sends."""


@dataclass(frozen=True)
class StreamProgress:
    """How far a stream is, as one rank sees it."""

    num_rounds: int = 0
    num_items: int = 0
    """Sent by this rank; on the receiving one, received from all, its own among them."""
    nbytes: int = 0
    """Encoded, likewise."""

    def and_round(self, items: Sequence[Frames]) -> "StreamProgress":
        """One round later."""
        nbytes = sum(map(payload_nbytes, items))
        return replace(
            self, num_rounds=self.num_rounds + 1, num_items=self.num_items + len(items), nbytes=self.nbytes + nbytes
        )


@dataclass(frozen=True)
class Plan:
    """What the caller of this rank has asked for."""

    items: Iterable[Any]
    rank: int
    world_size: int
    budget_nbytes: int
    max_payload_nbytes: int
    """Of one chunk, but for a single item that is longer."""
    max_frames: int
    """Of one chunk."""
    report: Callable[[StreamProgress], None] | None


class StreamRounds:
    """The rounds of one stream as operations of the Gatherer."""

    def __init__(self, membership: Membership, plan: Plan, dst: int, timeout_s: Timeout, tag: str) -> None:
        self._membership = membership
        self._dst = dst
        self._timeout_s = timeout_s
        self._tag = tag
        self._wanted: Sequence[int] = range(plan.world_size) if dst == plan.rank else (dst,)
        self.encode = membership.rounds.encode
        self.decode = membership.rounds.decode
        self.check_usable = membership.check_usable
        self.abort = membership.abort
        self.telling_interrupts = membership.telling_interrupts

    def exchange(
        self,
        frames: Callable[[Any], Frames],
        admit: Callable[[Sequence[int]], Sequence[int]],
        take: Callable[[Received], T],
    ) -> T:
        """(all ranks) Runs one round; what goes wrong in the functions concerns all ranks.

        Args:
            frames: Makes what this rank sends.
            admit: Says whose payloads go in round 2.
            take: Makes the result of what this rank has received, which is borrowed until the next round.
        """
        manner = Manner(routed=True, form="frames", checked=frames, admit=admit, taken=take)
        call = Call("iter_gather", self._dst, self._tag, self._timeout_s, True, self._wanted, manner)
        result: T = self._membership.operate(call, None)
        return result

    def begin(self) -> None:
        """Waits for what was handed in before; from here on no other operation may run.

        Raises:
            GatherError: This is not the time for a stream.
        """
        self._membership.begin_stream(self)

    def end(self) -> None:
        """There will be no more rounds: other operations may run."""
        self._membership.end_stream(self)


class _Side:
    """What both sides have in common: what goes wrong on this rank reaches every rank in the next round."""

    def __init__(self, rounds: StreamRounds, plan: Plan) -> None:
        self._rounds = rounds
        self._plan = plan
        self._progress = StreamProgress()
        self._chunks: Chunks | None = None
        self._budget: Budget | None = None

    def _start(self) -> tuple[Chunks, Budget]:
        """Makes what the first round needs, in it, so that wrong arguments are told everybody."""
        plan = self._plan
        if self._budget is None or self._chunks is None:
            self._budget = Budget(plan.budget_nbytes, plan.world_size)
            chunk_nbytes = min(self._budget.chunk_nbytes, plan.max_payload_nbytes)
            self._chunks = Chunks(plan.items, self._rounds.encode, chunk_nbytes, plan.max_frames)
        return self._chunks, self._budget

    def _next_round(self) -> Chunks:
        """Called first in each round: reports how far the stream is."""
        if self._progress.num_rounds:
            self._report()
        chunks, budget = self._start()
        budget.next_round()
        return chunks

    def _admit(self, sizes: Sequence[int]) -> Sequence[int]:
        return self._start()[1].admit(sizes)

    def _report(self) -> None:
        if self._plan.report is not None:
            self._plan.report(self._progress)


class Sender(_Side):
    """The side of every rank but the one that receives."""

    def run(self) -> None:
        """(all ranks) Sends everything; returns when the receiver has ended the stream."""
        try:
            with self._rounds.telling_interrupts():
                self._rounds.begin()
                while self._rounds.exchange(self._frames, self._admit, self._goes_on):
                    pass
        finally:
            self._rounds.end()
        self._report()

    def _frames(self, _: object) -> Frames:
        chunks = self._next_round()
        chunk = chunks.current()
        return pack_chunk(chunk, chunks.number, is_last=chunks.is_at_end)

    def _goes_on(self, received: Received) -> bool:
        chunks, budget = self._start()
        sent = chunks.was_sent() if budget.has_sent(self._plan.rank) else ()
        self._progress = self._progress.and_round(sent)
        ((_, frames),) = received
        if len(frames) != 1 or bytes(frames[0]) not in (_GOES_ON, _ENDS):
            raise ProtocolError("the receiving rank says neither that the stream goes on nor that it ends")
        return bytes(frames[0]) == _GOES_ON


class GatherStream(_Side, Iterator[tuple[int, T]], Generic[T]):
    """What `iter_gather` returns on the receiving rank: pairs of rank and item, those of one rank in their order.

    A round runs whenever the items of the one before have been taken, so the other ranks wait for whoever iterates.
    Ends by itself, by `close`, at the end of a `with` block, of its own or of the Gatherer's, and when nobody refers to
    it any more, as after a `break`. Threads may share it.
    """

    def __init__(self, rounds: StreamRounds, plan: Plan) -> None:
        super().__init__(rounds, plan)
        self._arrived: deque[tuple[int, Sequence[memoryview]]] = deque()
        self._unfinished = set(range(plan.world_size))
        self._num_chunks = [0] * plan.world_size
        self._is_over = True
        self._lock = threading.RLock()

    def begin(self) -> Self:
        """Waits for what was handed in before. What does not begin is what the other ranks get: nothing is in it."""
        self._is_over = False
        try:
            self._rounds.begin()
        except BaseException:
            self._end()
            raise
        return self

    def __next__(self) -> tuple[int, T]:
        """Returns the next item.

        Raises:
            RankFailedError: A rank could not go on, as its items raised or cannot be encoded; on every rank. The stream
                is over, the group stays usable.
            DecodeError: This item cannot be decoded; the stream goes on.
            GatherError: As `Gatherer.all_gather`; the stream is over.
        """
        with self._lock:
            try:
                return self._next()
            except Exception:
                raise
            except BaseException as exc:  # as in an operation: an item may have been lost
                self._rounds.abort(exc)
                raise

    def _next(self) -> tuple[int, T]:
        while not self._arrived and not self._is_over:
            if self._unfinished:
                self._exchange(_GOES_ON, self._take)
            else:
                self.close()
        if not self._arrived:
            raise StopIteration
        self._check_open()
        rank, frames = self._arrived.popleft()
        item: T = self._rounds.decode(rank, frames)
        return rank, item

    def _check_open(self) -> None:
        """What has arrived is the transport's, and so gone where that was closed."""
        try:
            self._rounds.check_usable()
        except GatherError:
            self._arrived.clear()
            self._end()
            raise

    def close(self) -> None:
        """(all ranks wait for this) Ends the stream on every rank; what has not been taken is dropped. Idempotent."""
        with self._lock:
            self._arrived.clear()
            if not self._is_over:
                self._exchange(_ENDS, lambda received: None)
                self._end()
                self._progress = self._progress.and_round(())
                self._report()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_over", True):
            with suppress(GatherError):  # the group is broken or closed, which the next call says
                self.close()

    def _take(self, received: Received) -> None:
        items: list[Frames] = []
        for rank, frames in received:
            chunk, is_last = self._own_chunk() if rank == self._plan.rank else self._unpacked(rank, frames)
            self._arrived.extend((rank, item) for item in chunk)
            items += chunk
            if is_last:
                self._unfinished.discard(rank)
        self._progress = self._progress.and_round(items)

    def _exchange(self, command: bytes, take: Callable[[Received], None]) -> None:
        def frames(_: object) -> Frames:
            chunks = self._next_round()
            if command == _GOES_ON:
                chunks.current()
            return [command]

        try:
            self._rounds.exchange(frames, self._admit, take)
        except BaseException:
            self._end()
            raise

    def _own_chunk(self) -> tuple[Sequence[Sequence[memoryview]], bool]:
        chunks = self._start()[0]
        sent = chunks.was_sent()
        return [[memoryview(frame) for frame in frames] for frames in sent], chunks.is_at_end

    def _unpacked(self, rank: int, frames: Sequence[memoryview]) -> tuple[Sequence[Sequence[memoryview]], bool]:
        try:
            chunk, is_last = unpack_chunk(frames, self._num_chunks[rank])
        except ProtocolError as exc:
            raise ProtocolError(f"payload of rank {rank}: {exc}") from exc
        self._num_chunks[rank] += 1
        return chunk, is_last

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._rounds.end()
