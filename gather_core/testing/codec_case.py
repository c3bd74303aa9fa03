"""What the author of a codec says about it, and the samples that the clauses of its contract are tried on."""

import copy
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest

from gather_core.codec import Codec, DecodeOptions
from gather_core.errors import summarize
from gather_core.exactness import difference
from gather_core.testing.codec_frames import Landed, as_views

COMPRESSIBLE_NBYTES = 4_000_000
NO_OPTIONS = DecodeOptions()


@dataclass
class Sample:
    """An object that comes back, its frames in memory that stays as it is, and what they decode to."""

    codec: Codec
    obj: object
    frames: list[memoryview]
    decoded: object

    def __str__(self) -> str:
        return describe(self.codec, self.obj)

    def decode(
        self,
        frames: Sequence[memoryview],
        what: str,
        remedy: str = "these frames are what encode writes",
        options: DecodeOptions = NO_OPTIONS,
    ) -> object:
        """Decodes good frames; fails the test where the codec raises."""
        try:
            return self.codec.decode(frames, options)
        except Exception as exc:
            pytest.fail(f"{self}: decode of {what} raised {summarize(exc)}; {remedy}")


def describe(codec: Codec, obj: object) -> str:
    """Codec and object for a message."""
    return f"codec {codec.spec!r} and {type(obj).__name__} {reprlib.repr(obj)}"


def copied(obj: object) -> object:
    """A deep copy for a test to work on; skips nothing: what cannot be copied is returned as it is."""
    try:
        return copy.deepcopy(obj)
    except Exception:
        return obj


class CodecCase(ABC):
    """The hooks of `CodecContract`."""

    @abstractmethod
    def make_codec(self) -> Codec:
        """A new codec; all that it returns can read each other's frames."""

    def objects(self) -> Sequence[object]:
        """Objects that come back exactly, small ones and large ones. By default plain data."""
        return [
            *(None, True, 0, -1, 2**40, 0.1, -0.0, math.inf, math.nan, "", "t\u00e9xt \0", b"", b"bytes \xff"),
            *([], {}, (), [1, [2, (3, [])]], {"b": 1, "a": [2.5, None], "": {}}, {1: "int", "1": "str"}),
            *({1, 2, 3}, bytearray(b"x" * 9000), ["y" * 20_000, -0.0, math.nan], list(range(3000))),
        ]

    def refused(self) -> Sequence[object]:
        """Objects that `encode` must refuse, because something would be lost. By default none."""
        return ()

    def compressible(self) -> object:
        """An object of 4 MB or more that compresses well, to see whether `decode` heeds `Limits`."""
        return "x" * COMPRESSIBLE_NBYTES

    def same(self, actual: object, expected: object) -> bool:
        """Whether nothing was lost: types all the way down, bits of floats, arrays and tensors, the order of dicts."""
        return difference(actual, expected) is None

    def _fresh_objects(self) -> list[object]:
        """Copies, so that a codec that changes its objects is found in each test, also where they are constants."""
        return [copied(obj) for obj in self.objects()]

    def _samples(self) -> list[Sample]:
        """Each object with a codec of its own; without those that one clause of the round trip rejects already."""
        samples = []
        for obj in self._fresh_objects():
            codec = self.make_codec()
            with suppress(Exception):
                frames = Landed(as_views(codec.encode(obj))).views
                samples.append(Sample(codec, obj, frames, codec.decode(frames)))
        if not samples:
            pytest.skip("no object comes back at all; see test_every_object_comes_back_exactly")
        return samples

    def _check_same(self, decoded: object, sample: Sample, problem: str, remedy: str) -> None:
        where = difference(decoded, sample.decoded)
        assert self.same(decoded, sample.decoded), f"{sample}: the decoded object {problem} ({where}); {remedy}"
