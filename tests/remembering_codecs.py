"""Codecs with one fault each: what their process remembers, and what only that process understands."""

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from broken_codecs import rejected_by
from gather_core.codec import DecodeOptions, Frames
from gather_core.errors import DecodeError
from right_codec import RightCodec


@rejected_by(test_frames_can_be_decoded_by_another_process="raised IndexError: .*write all that decode needs")
class SendsNumbersOfWhatTheClassRemembers(RightCodec):
    _texts: ClassVar[list[bytes]] = []

    def dumps(self, obj: object) -> bytes:
        text = super().dumps(obj)
        if text not in self._texts:
            self._texts.append(text)
        return b"%d" % self._texts.index(text) + b" " * len(text)

    def loads(self, text: bytes) -> Any:
        return super().loads(self._texts[int(text)])


@rejected_by(test_frames_can_be_decoded_by_another_process="raised DecodeError: other salt")
class SendsHashes(RightCodec):
    def dumps(self, obj: object) -> bytes:
        return b"%20d" % hash("salt") + super().dumps(obj)

    def loads(self, text: bytes) -> Any:
        if int(text[:20]) != hash("salt"):
            raise DecodeError("other salt")
        return super().loads(text[20:])


@rejected_by(test_frames_can_be_decoded_by_another_process="differs in another process")
class SendsNumbersOfTheProcess(RightCodec):
    objects = ([2, 3], [4])
    refused = ()

    def dumps(self, obj: object) -> bytes:
        return super().dumps(obj).replace(b"2", b"%d" % (os.getpid() ^ 2))

    def loads(self, text: bytes) -> Any:
        return super().loads(text.replace(b"%d" % (os.getpid() ^ 2), b"2"))


@rejected_by(test_frames_can_be_decoded_by_another_process="ended another process with 3")
class ExitsInAnotherProcess(RightCodec):
    def loads(self, text: bytes) -> Any:
        if sys.argv[0] == "-c":
            raise SystemExit(3)
        return super().loads(text)


@rejected_by(test_calls_leave_nothing_behind="refers to a frame that encode returned")
class KeepsFrames(RightCodec):
    _kept: ClassVar[list[object]] = []

    def encode(self, obj: object) -> Frames:
        frames = super().encode(obj)
        self._kept.extend(frames)
        return frames


@rejected_by(test_calls_leave_nothing_behind="refers to what decode returned")
class KeepsDecodedObjects(RightCodec):
    _kept: ClassVar[list[object]] = []

    def loads(self, text: bytes) -> Any:
        obj = super().loads(text)
        self._kept.append(obj)
        return obj


@rejected_by(test_calls_leave_nothing_behind="refers to a read-only view")
class KeepsBorrowedFrames(RightCodec):
    _kept: ClassVar[list[object]] = []

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        self._kept.append(frames[0])
        return super().decode(frames, options)


@rejected_by(
    test_frames_need_no_earlier_calls_to_be_decoded="another instance",
    test_frames_can_be_decoded_by_another_process="IndexError",
)
class SendsNumbersOfWhatItRemembers(RightCodec):
    def __init__(self) -> None:
        self._texts: list[bytes] = []

    def dumps(self, obj: object) -> bytes:
        self._texts.append(super().dumps(obj))
        return b"%d" % (len(self._texts) - 1) + b" " * len(self._texts[-1])

    def loads(self, text: bytes) -> Any:
        return super().loads(self._texts[int(text)])


@rejected_by(
    test_decoded_objects_are_independent_of_each_other="build a new object",
    test_calls_leave_nothing_behind="refers to what decode returned",
)
class RemembersWhatItDecoded(RightCodec):
    def __init__(self) -> None:
        self.loads = functools.cache(super().loads)  # type: ignore[method-assign]
