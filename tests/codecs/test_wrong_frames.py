"""Frames that are not those of one object: every codec refuses them, whatever is missing, added, cut or swapped."""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from every_codec import EVERY, PICKLES, STRUCTURED
from gather_core.codec import Codec
from gather_core.errors import DecodeError, LimitError
from gather_core.registry import get_codec
from gather_core.testing.codec_frames import Landed, as_views

NOISE = np.random.default_rng(0)


def _objects(spec: str) -> Iterator[object]:
    yield NOISE.integers(0, 255, 5000, np.uint8)
    yield np.zeros((50, 90))
    yield torch.ones(5000)
    if spec in STRUCTURED:
        yield [NOISE.random(3000), torch.zeros(7000), {"a": NOISE.random(900)}]
        yield {"large": NOISE.bytes(200_000), "more": [np.arange(5000), bytearray(150_000)]}


def _damaged(frames: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    yield from (("none", []), ("one more", [*frames, b""]), ("one more", [*frames, b"x" * 9]), ("first", [*frames[:1]]))
    yield "the last twice", [*frames, frames[-1]]
    for index, frame in enumerate(frames):
        before, after = list(frames[:index]), list(frames[index + 1 :])
        yield f"without {index}", [*before, *after]
        for length in {0, 1, len(frame) // 2, len(frame) - 1} - {len(frame)}:
            yield f"{length} bytes of {index}", [*before, frame[:length], *after]
        yield f"longer {index}", [*before, frame + b"x", *after]
        yield f"padded {index}", [*before, frame + bytes(64), *after]
    for index in range(len(frames) - 1):
        if len(frames[index]) != len(frames[index + 1]):
            yield f"{index} swapped", [*frames[:index], frames[index + 1], frames[index], *frames[index + 2 :]]


@pytest.mark.plan(30)
@pytest.mark.parametrize("spec", EVERY)
def test_missing_additional_short_long_and_swapped_frames_are_refused(spec: str, assert_same: Any) -> None:
    codec: Codec = get_codec(spec)
    for obj in _objects(spec):
        frames = [bytes(view) for view in as_views(codec.encode(obj))]
        assert_same(codec.decode(Landed(frames).views), obj)
        for what, wrong in _damaged(frames):
            try:
                back = codec.decode(Landed(wrong).views)
            except (DecodeError, LimitError):
                continue
            pytest.fail(f"{what} of {[*map(len, frames)]} decoded to {back!r:.80}")


@pytest.mark.plan(31)
@pytest.mark.parametrize("spec", PICKLES)
@pytest.mark.parametrize("nbytes", [100, 10_000, 300_000])
def test_a_pickle_buffer_of_the_users_owns_its_memory(spec: str, nbytes: int, roundtrip: Any) -> None:
    back = roundtrip(get_codec(spec), [pickle.PickleBuffer(bytearray(b"u" * nbytes)), "x"])
    assert bytes(memoryview(back[0])) == b"u" * nbytes
