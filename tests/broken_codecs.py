"""Codecs with one fault each, for the contract to find."""

import os
import pickle
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from gather_core.codec import Codec, DecodeOptions, Frames, own
from gather_core.errors import DecodeError, EncodeError, LimitError
from right_codec import PLAIN, RightCodec

_C = TypeVar("_C", bound=Codec)

REJECTED_BY: dict[type[Codec], Mapping[str, str]] = {}
"""Every broken codec -> the tests that reject it, and what they say of it."""


def rejected_by(**clauses: str) -> Callable[[type[_C]], type[_C]]:
    """Declares which tests of the contract reject a class, and a pattern of what each says."""

    def declare(codec: type[_C]) -> type[_C]:
        REJECTED_BY[codec] = clauses
        return codec

    return declare


@rejected_by(test_every_object_comes_back_exactly=r"changed \(\$\.*.*tuple became list")
class TuplesBecomeLists(RightCodec):
    refused = ()

    def dumps(self, obj: object) -> bytes:
        return repr(obj).encode().replace(b"(", b"[").replace(b")", b"]")


@rejected_by(test_every_object_comes_back_exactly=r"-0\.0 became 0\.0")
class LosesNegativeZero(RightCodec):
    def encode(self, obj: object) -> Frames:
        return super().encode(obj + 0.0 if isinstance(obj, float) else obj)


@rejected_by(test_every_object_comes_back_exactly=r"'b' became 'a'")
class SortsKeys(RightCodec):
    def encode(self, obj: object) -> Frames:
        return super().encode(dict(sorted(obj.items())) if isinstance(obj, dict) else obj)


@rejected_by(test_every_object_comes_back_exactly="decode raised .* parts of a larger memory")
class CannotReadPartsOfMemory(RightCodec):
    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        return self.loads(bytes(frames[1].obj))


@rejected_by(test_every_object_comes_back_exactly="encode raised EncodeError: no sets; .* leave it out")
class RefusesWhatItPromises(RightCodec):
    def encode(self, obj: object) -> Frames:
        if "{3}" in repr(obj):
            raise EncodeError("no sets")
        return super().encode(obj)


@rejected_by(test_frames_are_contiguous_bytes="no frames; return a list")
class NoFramesForNone(RightCodec):
    def encode(self, obj: object) -> Frames:
        return super().encode(obj) if obj is not None else []


@rejected_by(test_frames_are_contiguous_bytes="C-contiguous")
class ScatteredFrames(RightCodec):
    def encode(self, obj: object) -> Frames:
        head, text = super().encode(obj)
        return [memoryview(bytes(head) * 2)[::2], text]


@rejected_by(test_frames_are_contiguous_bytes="generator, not a sequence")
class FramesAsGenerator(RightCodec):
    def encode(self, obj: object) -> Any:
        return (frame for frame in super().encode(obj))


@rejected_by(test_frames_stay_as_they_are_when_more_is_encoded="memory of its own")
class ReusesItsBuffer(RightCodec):
    def __init__(self) -> None:
        self._of_thread = threading.local()

    def encode(self, obj: object) -> Frames:
        head, text = super().encode(obj)
        buffer = self._of_thread.__dict__.setdefault("buffer", bytearray(1 << 20))
        buffer[: len(text)] = text
        return [head, memoryview(buffer)[: len(text)]]


@rejected_by(
    test_an_object_can_be_encoded_again="second encode wrote raised", test_threads_share_one_codec="DecodeError"
)
class EncodesEachObjectOnce(RightCodec):
    refused = ()

    def __init__(self) -> None:
        self._sent: set[bytes] = set()

    def encode(self, obj: object) -> Frames:
        head, text = map(bytes, super().encode(obj))
        is_new = text not in self._sent
        self._sent.add(text)
        return [head, text if is_new else b""]


@rejected_by(test_a_decoded_object_keeps_nothing_of_borrowed_frames=r"elements .*codec\.own")
class AliasesBorrowedFrames(RightCodec):
    objects = (np.arange(100), np.arange(3))
    refused = ()

    def dumps(self, obj: Any) -> bytes:
        return bytes(obj.tobytes())

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        super().decode(frames, options)
        return np.frombuffer(frames[1], np.int64)

    def loads(self, text: bytes) -> None:
        return None


@rejected_by(test_writable_frames_decode_alike="frames that can change")
class CannotReadWritableFrames(RightCodec):
    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        if not all(frame.readonly for frame in frames):
            raise TypeError("frames that can change")
        return super().decode(frames, options)


@rejected_by(test_encode_does_not_change_the_object=r"encode changed it .*work on a copy")
class SortsListsInPlace(RightCodec):
    def encode(self, obj: object) -> Frames:
        if isinstance(obj, list) and all(isinstance(item, int) for item in obj):
            obj.sort()
        return super().encode(obj)


@rejected_by(test_encode_does_not_keep_the_object="keep nothing of it")
class KeepsTheLastObject(RightCodec):
    _last: object = None

    def encode(self, obj: object) -> Frames:
        self._last = obj
        return super().encode(obj)


@rejected_by(test_threads_share_one_codec="while other threads")
class WorksOnAnAttribute(RightCodec):
    _obj: object = None

    def encode(self, obj: object) -> Frames:
        self._obj = obj
        time.sleep(0)
        frames = super().encode(self._obj)
        self._obj = None
        return frames


@rejected_by(test_truncated_frames_are_refused=r"returned \[1, 2\]|returned \[\]")
class TakesTheWholeOfWhatIsThere(RightCodec):
    objects = ([1, 2, 3], list(range(100)))
    refused = ()

    def encode(self, obj: Any) -> Frames:
        return [struct.pack(f"<{len(obj)}q", *obj)]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        (frame,) = frames
        return [int(number) for (number,) in struct.iter_unpack("<q", frame[: len(frame) // 8 * 8])]


@rejected_by(
    test_truncated_frames_are_refused="returned None", test_missing_frames_are_refused="no frames returned None"
)
class ReturnsNoneForErrors(RightCodec):
    objects = PLAIN[1:]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        try:
            return super().decode(frames, options)
        except Exception:
            return None


@rejected_by(test_missing_frames_are_refused="frame 0 missing")
class NeedsNoHead(RightCodec):
    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        return self.loads(bytes(frames[0])) if len(frames) == 1 else super().decode(frames, options)


@rejected_by(test_extra_frames_are_not_ignored="ignored an extra frame")
class DropsExtraFrames(RightCodec):
    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        return super().decode(frames[:2], options)


@rejected_by(test_a_failed_decode_leaves_the_codec_usable="good frames after bad ones")
class GivesUpAfterAnError(RightCodec):
    _broken = False

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        if self._broken:
            raise DecodeError("broken")
        try:
            return super().decode(frames, options)
        except DecodeError:
            self._broken = True
            raise


@rejected_by(test_damaged_bytes_are_an_error_or_an_object=r"allocated \d{7,8} bytes; check lengths")
class AllocatesWhatTheHeadClaims(RightCodec):
    def encode(self, obj: object) -> Frames:
        text = self.dumps(obj)
        return [len(text).to_bytes(3, "little"), text]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        head, text = frames
        memory = bytearray(int.from_bytes(head, "little"))
        if len(head) != 3 or len(memory) != len(text):
            raise DecodeError("wrong length")
        memory[:] = text
        return self.loads(bytes(memory))


@rejected_by(test_damaged_bytes_are_an_error_or_an_object=r"allocated \d{7,8} bytes; check lengths")
class AllocatesWhatTheSecondFrameClaims(RightCodec):
    def dumps(self, obj: object) -> bytes:
        text = super().dumps(obj)
        return len(text).to_bytes(3, "little") + text

    def loads(self, text: bytes) -> Any:
        memory = bytearray(int.from_bytes(text[:3], "little"))
        if len(memory) != len(text) - 3:
            raise DecodeError("wrong length")
        memory[:] = text[3:]
        return super().loads(bytes(memory))


@rejected_by(test_damaged_bytes_are_an_error_or_an_object="raised SystemExit")
class ExitsOnABadHead(RightCodec):
    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        if len(frames) == 2 and len(frames[0]) == 8 and frames[0][7]:
            raise SystemExit("too large")
        return super().decode(frames, options)


@rejected_by(test_planted_code_is_not_executed=r"Trust\.CODE")
class UnpicklesData(RightCodec):
    refused = ()

    def dumps(self, obj: object) -> bytes:
        return pickle.dumps(obj)

    def loads(self, text: bytes) -> Any:
        return pickle.loads(text)


@rejected_by(test_planted_code_is_not_executed="ran code that was planted")
class EvaluatesData(RightCodec):
    def loads(self, text: bytes) -> Any:
        return eval(text.decode())


@rejected_by(test_limits_hold_for_what_grows_while_it_is_decoded=r"grew from \d+ bytes")
class Compresses(RightCodec):
    """Heeds no limits."""

    def dumps(self, obj: object) -> bytes:
        return zlib.compress(super().dumps(obj))

    def loads(self, text: bytes) -> Any:
        return super().loads(zlib.decompress(text))


@rejected_by(test_limits_hold_for_what_grows_while_it_is_decoded=r"allocated \d+ bytes before")
class LooksAtLimitsTooLate(Compresses):
    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        obj = super().decode(frames, options)
        if isinstance(obj, str) and len(obj) > options.limits.frame_nbytes:
            raise LimitError("too large")
        return obj


@rejected_by(test_refused_objects_raise_and_leave_the_codec_usable="encode took it")
class TakesWhatItCannotKeep(RightCodec):
    def dumps(self, obj: object) -> bytes:
        try:
            return super().dumps(obj)
        except EncodeError:
            return repr(str(obj)).encode()


@rejected_by(test_refused_objects_raise_and_leave_the_codec_usable="encode after a refused object")
class StaysInARefusal(RightCodec):
    _depth = 0

    def dumps(self, obj: object) -> bytes:
        if self._depth:
            raise EncodeError("nested")
        self._depth = 0 if obj in PLAIN else 1
        return super().dumps(obj)


@rejected_by(
    test_the_name_is_one_that_a_spec_can_hold="'My Codec' must be of a-z",
    test_a_copy_made_from_the_spec_reads_the_frames="no codec can be built",
)
class NameOfASentence(RightCodec):
    name = "My Codec"


@rejected_by(test_a_copy_made_from_the_spec_reads_the_frames="PickleCodec; choose a name")
class NameOfAnother(RightCodec):
    name = "pickle"


@rejected_by(test_trust_is_declared=r"Trust\.DATA or")
class TrustInWords(RightCodec):
    trust = "data"  # type: ignore[assignment]


@rejected_by(test_equal_codecs_have_the_same_fingerprint="two equal codecs")
class FingerprintOfTheInstance(RightCodec):
    def __init__(self) -> None:
        self._random = os.urandom(8).hex()

    def fingerprint(self) -> str:
        return f"{self.spec} {self._random}"


@rejected_by(test_equal_codecs_have_the_same_fingerprint="became .* with use")
class FingerprintOfUse(RightCodec):
    _num_calls = 0

    def encode(self, obj: object) -> Frames:
        self._num_calls += 1
        return super().encode(obj)

    def fingerprint(self) -> str:
        return f"{self.spec} {self._num_calls}"


@rejected_by(test_equal_codecs_have_the_same_fingerprint="must be a str")
class FingerprintInBytes(RightCodec):
    def fingerprint(self) -> Any:
        return b"right"


@rejected_by(test_a_wire_version_is_a_number_that_the_fingerprint_tells=r"wire_version is '1'; it must be an int")
class WireVersionInWords(RightCodec):
    wire_version = "1"  # type: ignore[assignment]


@rejected_by(test_a_wire_version_is_a_number_that_the_fingerprint_tells="wire_version is 0; .* at least 1")
class WireVersionFromZero(RightCodec):
    wire_version = 0


@rejected_by(test_a_wire_version_is_a_number_that_the_fingerprint_tells="'right wire 20' does not hold 'wire 2'; put")
class FingerprintForgetsTheWireVersion(RightCodec):
    wire_version = 2

    def fingerprint(self) -> str:
        return f"{self.spec} wire 20"


@rejected_by(test_a_copy_made_from_the_spec_reads_the_frames="put all options into spec")
class SpecForgetsTheOption(RightCodec):
    """Must be registered."""

    name = "forgetful"

    def __init__(self, *, key: int = 0) -> None:
        self._key = key

    def dumps(self, obj: object) -> bytes:
        return bytes(byte ^ self._key for byte in super().dumps(obj))

    def loads(self, text: bytes) -> Any:
        return super().loads(bytes(byte ^ self._key for byte in text))


@rejected_by(test_tensors_land_where_the_receiver_wants_them="arrived on cpu")
class LeavesTensorsOnTheCpu(RightCodec):
    objects = (torch.arange(5), torch.arange(2000))
    refused = ()

    def dumps(self, obj: Any) -> bytes:
        return bytes(obj.numpy().tobytes())

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        super().decode(frames, options)
        return torch.frombuffer(own(frames[1]), dtype=torch.int64)

    def loads(self, text: bytes) -> None:
        return None
