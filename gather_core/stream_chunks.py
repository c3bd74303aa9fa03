"""What travels in the rounds of a stream: chunks of items, and which of them go within the budget."""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from time import monotonic
from typing import Any

from gather_core.codec import Buffer, Frames, own
from gather_core.errors import LimitError, ProtocolError, SettingsError
from gather_core.memory import align
from gather_core.slot import payload_nbytes

DEFAULT_BUDGET_NBYTES = 64 << 20
FILL_WITHIN_S = 0.1
"""Seconds after which a chunk goes as it is: who has slow items shall not keep the others waiting for many of them."""
_MORE, _LAST = 0, 1
"""The first byte of a chunk's head: whether more chunks follow."""
_HEAD = struct.Struct("<BQ")


class Chunks:
    """One rank's items, encoded as they are needed, and in portions.

    Args:
        items: What to iterate over; from the first chunk on.
        encode: From an item to its frames.
        chunk_nbytes: How long a chunk's payload gets, but for a single item that is longer.
        max_frames: How many frames a chunk may have, its head included.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        items: Iterable[Any],
        encode: Callable[[Any], Frames],
        chunk_nbytes: int,
        max_frames: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._items = items
        self._iterator: Iterator[Any] | None = None
        self._encode = encode
        self._chunk_nbytes = chunk_nbytes
        self._max_frames = max_frames
        self._clock = clock
        self._held_back: Frames | None = None
        """An item that did not fit into the last chunk."""
        self._chunk: list[Frames] | None = None
        self.is_at_end = False
        self.number = 0
        """Of the current chunk, from 0."""

    def current(self) -> list[Frames]:
        """The chunk that is to be sent: the next one only once this one was sent.

        Raises:
            BaseException: What the iteration raises, or encoding.
        """
        if self._chunk is None:
            self._chunk = list(self._fill())
        return self._chunk

    def was_sent(self) -> list[Frames]:
        """Goes on to the next chunk; returns the one that was sent."""
        sent, self._chunk = self._chunk or [], None
        self.number += 1
        return sent

    def _fill(self) -> Iterator[Frames]:
        deadline_s = self._clock() + FILL_WITHIN_S
        nbytes, num_frames = align(1), 1
        while (frames := self._next()) is not None:
            nbytes += payload_nbytes(frames)
            num_frames += len(frames)
            if len(frames) >= self._max_frames:
                raise LimitError(
                    f"an item of {len(frames)} frames leaves none of {self._max_frames} to the chunk's head"
                )
            if num_frames > 1 + len(frames) and (nbytes > self._chunk_nbytes or num_frames > self._max_frames):
                self._held_back = frames
                return
            yield frames
            if self._clock() >= deadline_s:
                return

    def _next(self) -> Frames | None:
        if self._held_back is not None:
            frames, self._held_back = self._held_back, None
            return frames
        if self.is_at_end:
            return None
        if self._iterator is None:
            self._iterator = iter(self._items)
        for item in self._iterator:
            return [_kept(frame) for frame in self._encode(item)]
        self.is_at_end = True
        return None


class Budget:
    """Which payloads travel together in round 2; comes out the same on every rank.

    Raises:
        SettingsError: No budget.
    """

    def __init__(self, nbytes: object, world_size: int) -> None:
        if not isinstance(nbytes, int) or nbytes < 1:
            raise SettingsError(f"budget_nbytes must be a positive int, not {nbytes!r}")
        self.nbytes = nbytes
        self.chunk_nbytes = max(nbytes // world_size, 1)
        self._num_rounds = 0
        self._waiting: set[int] = set()

    def admit(self, sizes: Sequence[int]) -> list[int]:
        """Returns the sizes with 0 for those that wait: each rank's turn to be the first comes again."""
        first, left = self._num_rounds % len(sizes), self.nbytes
        admitted = [0] * len(sizes)
        for rank in [*range(first, len(sizes)), *range(first)]:
            if 0 < sizes[rank] <= left or (sizes[rank] and not any(admitted)):
                admitted[rank] = sizes[rank]
                left -= sizes[rank]
        self._waiting = {rank for rank, size in enumerate(sizes) if size and not admitted[rank]}
        return admitted

    def next_round(self) -> None:
        """To be called before each round."""
        self._num_rounds += 1
        self._waiting = set()

    def has_sent(self, rank: int) -> bool:
        """Whether a rank's payload has travelled in this round."""
        return rank not in self._waiting


def pack_chunk(chunk: Sequence[Frames], number: int, *, is_last: bool) -> list[Any]:
    """The frames of a payload: the head, then those of all items."""
    head = _HEAD.pack(_LAST if is_last else _MORE, number) + struct.pack(f"<{len(chunk)}I", *map(len, chunk))
    return [head, *(frame for frames in chunk for frame in frames)]


def unpack_chunk(frames: Sequence[memoryview], number: int) -> tuple[list[Sequence[memoryview]], bool]:
    """Takes a payload apart: the items' frames, and whether it is the rank's last.

    Raises:
        ProtocolError: No correct rank sends this, or not as its chunk of this number.
    """
    head = frames[0].tobytes() if frames else b""
    num_items, odd = divmod(len(head) - _HEAD.size, 4)
    if odd or num_items < 0 or head[0] not in (_MORE, _LAST):
        raise ProtocolError("a chunk without a head")
    last, found = _HEAD.unpack_from(head)
    if found != number:
        raise ProtocolError(f"chunk {found} of the stream instead of chunk {number}")
    counts = struct.unpack_from(f"<{num_items}I", head, _HEAD.size)
    if sum(counts) != len(frames) - 1:
        raise ProtocolError(f"{len(frames) - 1} frames instead of {sum(counts)}")
    ends = accumulate(counts, initial=1)
    next(ends)
    return [frames[end - count : end] for end, count in zip(ends, counts, strict=True)], last == _LAST


def _kept(frame: Buffer) -> Buffer:
    """A frame that stays as it is: the item may be memory that its owner goes on writing to, for the next item."""
    return frame if type(frame) is bytes else own(memoryview(frame).toreadonly())
