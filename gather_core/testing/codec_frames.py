"""Frames as a Gatherer hands them to a codec, and hostile ones."""

import pickle
from collections.abc import Sequence
from typing import Any

from gather_core.memory import ALIGNMENT, align, aligned_buffer

SPRUNG: list[str] = []
"""What planted code has run in this process: only codecs that execute code fill it."""


def as_views(frames: object) -> list[memoryview]:
    """What `encode` returned, as views of single bytes.

    Raises:
        TypeError: It is no sequence, or a frame is not a bytes-like object that is C-contiguous.
        ValueError: There are no frames.
    """
    if not isinstance(frames, Sequence):
        raise TypeError(f"encode returned {type(frames).__name__}, not a sequence of frames")
    if not frames:
        raise ValueError("encode returned no frames")
    return [memoryview(frame).cast("B") for frame in frames]


class Landed:
    """Frames that were copied into one memory, as slots are: each aligned to 64 bytes, and not to more.

    Args:
        frames: What to copy.
        writable: Whether the codec may keep the memory.
    """

    def __init__(self, frames: Sequence[memoryview | bytes], *, writable: bool = False) -> None:
        sizes = [len(frame) for frame in frames]
        self._memory = aligned_buffer(ALIGNMENT + sum(align(size) + ALIGNMENT for size in sizes))
        self.views: list[memoryview] = []
        start = ALIGNMENT
        for frame, size in zip(frames, sizes, strict=True):
            view = self._memory[start : start + size]
            view[:] = frame
            self.views.append(view if writable else view.toreadonly())
            start += align(size) + ALIGNMENT

    def overwrite(self) -> None:
        """What happens to borrowed memory as soon as `decode` has returned."""
        self._memory[:] = b"\xaa" * len(self._memory)


def spring() -> None:
    """What planted code calls."""
    SPRUNG.append("planted code was run")


class _Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return spring, ()


def planted() -> list[bytes]:
    """Bytes that call `spring` in whatever executes what it decodes: pickles, a Python expression, a YAML tag."""
    name = f"{spring.__module__}.{spring.__qualname__}"
    expression = f"__import__({spring.__module__!r}, fromlist=['spring']).spring()"
    pickles = [pickle.dumps(_Planted(), protocol) for protocol in (0, 2, 5)]
    return [*pickles, expression.encode(), f"!!python/object/apply:{name} []".encode()]
