"""ZstdCodec: compresses where it pays, and decodes what the codec inside decodes; hostile bytes have their own file."""

import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gather_codecs import zstandard_frames
from gather_codecs.messagepack import MessagePackCodec
from gather_codecs.pickle5 import PickleCodec
from gather_codecs.zstandard_frames import ZstdCodec
from gather_core.codec import Limits, Trust

Land = Callable[[Sequence[Any]], list[memoryview]]
COMPRESSIBLE = {"a": np.arange(20_000), "b": "x" * 50_000, "c": np.zeros(3)}


@pytest.fixture
def codec() -> ZstdCodec:
    return ZstdCodec(PickleCodec())


def _nbytes(frames: Sequence[Any]) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)


@pytest.mark.parametrize("level", [1, 3, 19])
@pytest.mark.parametrize("inner", [PickleCodec(), MessagePackCodec()], ids=lambda inner: str(inner.spec))
def test_objects_come_back_from_fewer_bytes(roundtrip: Any, assert_same: Any, inner: Any, level: int) -> None:
    codec = ZstdCodec(inner, level=level)
    assert _nbytes(codec.encode(COMPRESSIBLE)) < _nbytes(inner.encode(COMPRESSIBLE)) / 2
    assert_same(roundtrip(codec, COMPRESSIBLE), COMPRESSIBLE)


@pytest.mark.parametrize("obj", [None, {}, np.zeros(0), np.arange(5)])
def test_small_objects_are_stored(codec: ZstdCodec, roundtrip: Any, assert_same: Any, obj: object) -> None:
    inner = PickleCodec().encode(obj)
    assert [bytes(frame) for frame in codec.encode(obj)[1:]] == [bytes(frame) for frame in inner]
    assert_same(roundtrip(codec, obj), obj)


def test_random_frames_are_stored_without_a_copy(codec: ZstdCodec) -> None:
    array = np.frombuffer(np.random.default_rng(0).bytes(200_000), np.uint8).copy()
    frame = memoryview(codec.encode(array)[2])
    array[0] ^= 1
    assert frame[0] == array[0]


def test_equal_objects_are_compressed_alike(codec: ZstdCodec) -> None:
    first, second = codec.encode(COMPRESSIBLE), codec.encode(COMPRESSIBLE)
    assert [bytes(frame) for frame in first] == [bytes(frame) for frame in second]


@pytest.mark.parametrize("nbytes", [10_000, 1_000_000, 100_000_000])
def test_zeros_stay_below_the_default_limit_of_expansion(codec: ZstdCodec, roundtrip: Any, nbytes: int) -> None:
    zeros = np.zeros(nbytes, np.uint8)
    assert _nbytes(codec.encode(zeros)) < 1000 + nbytes // 5000
    assert not roundtrip(codec, zeros).any()


def test_the_spec_names_what_differs_from_the_default() -> None:
    inner = MessagePackCodec()
    assert ZstdCodec(inner).spec == "msgpack+zstd"
    assert ZstdCodec(inner, min_nbytes=5, level=3).spec == "msgpack+zstd:level=3,min_nbytes=5"
    assert ZstdCodec(inner, max_ratio=1).spec == "msgpack+zstd:max_ratio=1.0"
    assert ZstdCodec(inner, level=3).fingerprint() == "msgpack+zstd:level=3"
    assert ZstdCodec(inner).trust is Trust.DATA
    assert ZstdCodec(PickleCodec()).trust is Trust.CODE


@pytest.mark.parametrize(
    "options",
    [
        {"level": 0},
        {"level": 99},
        {"level": 1.5},
        {"level": True},
        {"min_nbytes": 0},
        {"max_ratio": 0},
        {"max_ratio": 1.1},
        {"max_ratio": True},
        {"max_ratio": "x"},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be an? (int|number)"):
        ZstdCodec(PickleCodec(), **options)


@pytest.mark.parametrize("level", [1, 22])
def test_no_frame_shrinks_more_than_half_of_what_the_default_limits_allow(level: int) -> None:
    codec = ZstdCodec(PickleCodec(), level=level, min_nbytes=1)
    for nbytes in (1, 100, 9_999, 10_001, 19_999, 123_457, 1_000_001, 9_999_999):
        obj = bytes(nbytes)
        raw, packed = PickleCodec().encode(obj)[0], codec.encode(obj)[1]
        assert len(raw) <= len(packed) * Limits().expansion_ratio / 2


@pytest.mark.parametrize("limits", [Limits(payload_nbytes=99_999), Limits(frame_nbytes=99_999)])
def test_what_the_default_limits_refuse_is_not_compressed(
    codec: ZstdCodec, monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> None:
    monkeypatch.setattr(zstandard_frames, "_DEFAULTS", limits)
    assert _nbytes(codec.encode(np.zeros(99_000, np.uint8))) < 1000
    assert _nbytes(codec.encode([np.zeros(60_000, np.uint8), np.zeros(60_000, np.uint8)])) > 120_000


def test_decompressed_frames_are_not_copied_again(codec: ZstdCodec, land: Land) -> None:
    array = np.zeros(20_000_000, np.uint8)
    frames = land(codec.encode(array))
    tracemalloc.start()
    try:
        back = codec.decode(frames)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * array.nbytes
    finally:
        tracemalloc.stop()
    assert isinstance(back, np.ndarray)
    assert back.flags.writeable
    assert not back.any()


@pytest.mark.parametrize("inner", [PickleCodec(), MessagePackCodec()], ids=lambda inner: str(inner.spec))
def test_decompressed_objects_share_no_memory(roundtrip: Any, inner: Any) -> None:
    codec = ZstdCodec(inner, min_nbytes=1)
    first, second, text = roundtrip(codec, [np.zeros(9000), np.zeros(9000), bytearray(9000)])
    first += 1
    assert not second.any()
    assert text == bytes(9000)
    assert not roundtrip(codec, [np.zeros(9000)])[0].any()
