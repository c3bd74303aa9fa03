"""What zstd compresses and what it leaves alone: a pure function of the frame and the options."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fresh_python import run_python
from gather_core.codec import Codec
from gather_core.registry import get_codec

INNER = ["pickle", "cloudpickle", "auto", "msgpack", "raw"]


def _frames(codec: Codec, obj: object) -> list[bytes]:
    return [bytes(memoryview(frame).cast("B")) for frame in codec.encode(obj)]


def _noise(nbytes: int) -> Any:
    return np.frombuffer(np.random.default_rng(nbytes).bytes(nbytes), np.uint8).copy()


@pytest.mark.plan(68)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("nbytes", [12_000, 200_000])
def test_random_data_travels_as_it_is_and_uncopied(inner: str, nbytes: int) -> None:
    array = _noise(nbytes)
    frames: Sequence[Any] = get_codec(f"{inner}+zstd").encode(array)
    assert [bytes(memoryview(frame).cast("B")) for frame in frames[1:]] == _frames(get_codec(inner), array)
    array[0] ^= 1
    assert memoryview(frames[-1])[0] == array[0]


@pytest.mark.plan(68)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("nbytes", [10_000, 3_000_000])
def test_zeros_shrink(inner: str, nbytes: int, roundtrip: Any, assert_same: Any) -> None:
    codec, zeros = get_codec(f"{inner}+zstd"), np.zeros(nbytes, np.uint8)
    assert sum(map(len, _frames(codec, zeros))) < 1000
    assert_same(roundtrip(codec, zeros), zeros)


@pytest.mark.plan(68)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("nbytes", [0, 1, 100, 9000])
def test_tiny_frames_are_not_touched(inner: str, nbytes: int) -> None:
    tiny = bytes(nbytes)
    assert _frames(get_codec(f"{inner}+zstd"), tiny)[1:] == _frames(get_codec(inner), tiny)


def test_what_pays_is_up_to_max_ratio(roundtrip: Any, assert_same: Any) -> None:
    array = _noise(300_000).copy()
    array.reshape(-1, 10_000)[:, 5_000:] = 0  # to a half
    for max_ratio, is_compressed in ((0.3, False), (0.7, True), (1, True)):
        codec = get_codec(f"raw+zstd:max_ratio={max_ratio}")
        assert (len(_frames(codec, array)[-1]) < 200_000) == is_compressed
        assert_same(roundtrip(codec, array), array)


_DIGEST = """
import hashlib
import numpy as np
from gather_core.registry import get_codec
noise = np.frombuffer(np.random.default_rng(5).bytes(300_000), np.uint8)
codec = get_codec({spec!r})
digest = hashlib.sha256()
for share in range(0, 300_001, 20_000):
    array = noise.copy()
    array[share:] = 0
    for frame in codec.encode(array):
        digest.update(memoryview(frame).cast("B"))
print(digest.hexdigest())
"""


@pytest.mark.plan(68)
@pytest.mark.parametrize("inner", ["pickle", "msgpack", "raw"])
def test_the_choice_depends_on_nothing_but_the_frame(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the instance, nor on what it encoded before, nor on the process and its hash seed."""
    spec = f"{inner}+zstd:min_nbytes=100"
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    elsewhere = run_python(_DIGEST.format(spec=spec))
    codecs = [get_codec(spec), get_codec(spec)]
    for used_before in (_noise(50_000), np.zeros(50_000, np.uint8)):
        codecs[1].encode(used_before)
    noise = np.frombuffer(np.random.default_rng(5).bytes(300_000), np.uint8)
    for codec in (*codecs, *codecs[::-1]):
        digest = hashlib.sha256()
        for share in range(0, 300_001, 20_000):
            array = noise.copy()
            array[share:] = 0
            for frame in _frames(codec, array):
                digest.update(frame)
        assert digest.hexdigest() == elsewhere
