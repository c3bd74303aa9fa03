"""Clauses of the codec contract: nothing of an object stays behind when a call has returned."""

import gc
import sys
from collections.abc import Callable
from typing import Any

from gather_core.exactness import is_array, is_tensor, parts
from gather_core.testing.codec_case import CodecCase, Sample, copied
from gather_core.testing.codec_frames import Landed

_MUTABLE = (list, dict, set, bytearray)


class LeakClauses(CodecCase):
    """What holds after a call."""

    def test_encode_does_not_keep_the_object(self) -> None:
        """Once its frames are gone, nothing refers to the object any more."""
        codec = self.make_codec()
        for sample in self._samples():
            codec.encode(copied(sample.obj))  # so that what is kept per type is there already
            obj = copied(sample.obj)
            before = _references(obj)
            codec.encode(obj)
            if _references(obj) != before:
                gc.collect()
            assert _references(obj) == before, (
                f"{sample}: after encode, something still refers to the object or to a part of it; "
                "keep nothing of it but in the frames"
            )

    def test_calls_leave_nothing_behind(self) -> None:
        """Frames, borrowed views and decoded objects are free as soon as nobody else holds them."""
        for sample in self._samples():
            for what, holds in _HOLDS.items():
                if holds(sample):
                    gc.collect()
                    assert not holds(sample), f"{sample}: something still refers to {what}; keep nothing between calls"


def _holds_frames(sample: Sample) -> bool:
    frames, others = list(sample.codec.encode(sample.obj)), list(sample.codec.encode(sample.obj))
    # What each call returns, such as a constant head, or what is a part of the object, may well be held.
    shared = {*map(id, others), *map(id, parts(sample.obj))}
    found = [frame for frame in frames if id(frame) not in shared and len(frame) > 1]
    frames.clear()
    return _counts(found) != _counts([bytes(2) for _ in found])


def _holds_views(sample: Sample) -> bool:
    views = Landed(sample.frames).views
    before = _counts(views)
    sample.codec.decode(views)
    return _counts(views) != before


def _holds_decoded(sample: Sample) -> bool:
    decoded = sample.codec.decode(Landed(sample.frames).views)
    twin = copied(decoded)  # has as many references inside, and nobody else knows it
    return _references(decoded) != _references(twin)


_HOLDS: dict[str, Callable[[Sample], bool]] = {
    "a frame that encode returned": _holds_frames,
    "a read-only view that decode was given": _holds_views,
    "what decode returned": _holds_decoded,
}


def _counts(objs: list[Any]) -> list[int]:
    return [sys.getrefcount(objs[index]) for index in range(len(objs))]


def _references(obj: object) -> list[int]:
    """How many references there are to each part of an object that can change."""
    return [sys.getrefcount(part) for part in list(parts(obj)) if _can_change(part)]


def _can_change(part: object) -> bool:
    return isinstance(part, _MUTABLE) or is_array(part) or is_tensor(part)
