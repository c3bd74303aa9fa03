"""The border around a codec: what a plug-in returns or raises comes out as frames within limits, or as our errors."""

from collections.abc import Sequence
from typing import Any

from gather_core.codec import Codec, DecodeOptions, Frames
from gather_core.collector import without_collection
from gather_core.errors import DecodeError, EncodeError, LimitError, summarize

_HOLD_OFF_FROM_NBYTES = 32 * 1024
"""Smaller objects are built before the garbage collector has run more than a few times."""
_HEAD_AND_TABLE = 2

MOST_HELD = 2
"""What part of an object may hold of the memory of all of it, in times of its own length: see `give_large`."""
MOST_HELD_OF_SLOTS = 8
"""The same in slots that a transport gives away, as it gives so many at a time and no more."""


class CodecBorder:
    """A codec as the Gatherer calls it."""

    __slots__ = ("_codec", "_options")

    def __init__(self, codec: Codec, options: DecodeOptions) -> None:
        self._codec = codec
        self._options = options

    def encode(self, obj: object) -> Frames:
        """Returns the object as frames of bytes, C-contiguous, at least one.

        Raises:
            EncodeError: The codec cannot, or returned something else.
            LimitError: More or larger frames than the limits allow.
        """
        codec = self._codec
        try:
            frames = codec.encode(obj)
            if type(frames) is not list or len(frames) != 1 or type(frames[0]) is not bytes:
                frames = [frame if type(frame) is bytes else _as_bytes(frame) for frame in frames]
        except EncodeError:
            raise
        except Exception as exc:
            text = f"codec {codec.spec} cannot encode this {type(obj).__name__}: {summarize(exc)}"
            raise EncodeError(text) from exc
        if not frames:
            raise EncodeError(f"codec {codec.spec} returned no frames")
        limits = self._options.limits
        largest = len(frames[0]) if len(frames) == 1 else max(map(len, frames))
        if len(frames) > limits.num_frames:
            raise LimitError(f"{len(frames)} frames are above Limits.num_frames={limits.num_frames}")
        if largest > limits.frame_nbytes:
            raise LimitError(f"a frame of {largest} bytes is above Limits.frame_nbytes={limits.frame_nbytes}")
        return frames

    def decode(self, rank: int, frames: Sequence[memoryview]) -> object:
        """Rebuilds the object of a rank.

        Raises:
            DecodeError: Whatever the codec raised; names the rank.
        """
        try:
            if _has_many_parts(frames):
                return without_collection(lambda: self._codec.decode(frames, self._options))
            return self._codec.decode(frames, self._options)
        except Exception as exc:
            raise self._failed(rank, exc) from exc

    def decode_small(self, ranks: Sequence[int], frame_of: Sequence[memoryview]) -> list[Any]:
        """Rebuilds the objects of these ranks, each of one short frame; raises as `decode`."""
        decode, options = self._codec.decode, self._options
        objects = []
        for rank in ranks:
            try:
                objects.append(decode((frame_of[rank],), options))
            except Exception as exc:
                raise self._failed(rank, exc) from exc
        return objects

    def _failed(self, rank: int, exc: Exception) -> DecodeError:
        return DecodeError(f"codec {self._codec.spec} cannot decode the object of rank {rank}: {summarize(exc)}")


def _has_many_parts(frames: Sequence[memoryview]) -> bool:
    """Whether the frames may hold so many containers that the collector would run again and again meanwhile.

    It is the head that holds them: the first frame, or the second behind a compressor's table; the rest is buffers.
    """
    if len(frames) == _HEAD_AND_TABLE:
        return len(frames[0]) + len(frames[1]) >= _HOLD_OFF_FROM_NBYTES
    return bool(frames) and len(frames[0]) >= _HOLD_OFF_FROM_NBYTES


def _as_bytes(frame: object) -> memoryview:
    """A view of single bytes: items of other formats are cast, what is not C-contiguous is a TypeError."""
    view = memoryview(frame)  # type: ignore[arg-type]
    return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")


def has_given(frames: Frames, nbytes: int) -> bool:
    """Whether any but the head of an object of so many bytes is left to it by `give_large`, in memory of a slot."""
    return len(frames) > 1 and MOST_HELD_OF_SLOTS * max(map(len, frames[1:])) > nbytes


def give_large(frames: Sequence[memoryview], most_held: int) -> list[memoryview]:
    """Leaves the frames of writable memory to the object that are a good part of it, and so no reason to copy them.

    Smaller ones are made read-only, and so copied: else a small array that the user keeps would hold all of it.

    Args:
        frames: All of an object.
        most_held: What a part may hold of the memory of all frames, in times of its own length.
    """
    total = sum(map(len, frames))
    return [frame if most_held * len(frame) > total else frame.toreadonly() for frame in frames]
