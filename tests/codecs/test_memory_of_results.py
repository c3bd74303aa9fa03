"""Whose memory is whose: of the object, of its frames, of the slot, of what is decoded."""

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from every_codec import EVERY, MSGPACK, STRUCTURED
from gather_core.codec import Codec
from gather_core.codec_border import give_large
from gather_core.memory import aligned_buffer
from gather_core.registry import get_codec
from gather_core.testing.codec_frames import Landed, as_views

Array = np.ndarray[Any, Any]
NUM_ZEROS = 4_000_000


@pytest.fixture(params=EVERY)
def codec(request: pytest.FixtureRequest) -> Codec:
    return get_codec(request.param)


def _objects(codec: Codec) -> Iterator[Any]:
    """Arrays and tensors, small ones and large ones, on their own, and in an object where the codec takes objects."""
    for num_elements in (3, 5000):
        yield np.arange(num_elements)
        yield torch.arange(num_elements)
        if codec.spec in STRUCTURED:
            yield [np.arange(float(num_elements)), bytearray(b"x" * num_elements), {"a": torch.ones(num_elements)}]


def _parts(obj: Any) -> list[Any]:
    return [obj[0], obj[2]["a"]] if type(obj) is list else [obj]


@pytest.mark.plan(40)
@pytest.mark.parametrize("writable", [False, True], ids=["borrowed", "gift"])
def test_what_is_decoded_is_writable_and_does_not_change_with_borrowed_frames(
    codec: Codec, assert_same: Any, writable: bool
) -> None:
    for obj in _objects(codec):
        landed = Landed(as_views(codec.encode(obj)), writable=writable)
        back = codec.decode(landed.views)
        if not writable:
            landed.overwrite()
        assert_same(back, obj)
        for part in _parts(back):
            part[...] = 7  # a ValueError where an array is read-only
            assert (part == 7).all()


@pytest.mark.plan(38)
@pytest.mark.parametrize("shift", [1, 3, 4])
def test_frames_at_an_odd_address_decode_to_aligned_memory(codec: Codec, assert_same: Any, shift: int) -> None:
    for obj in _objects(codec):
        frames = []
        for frame in as_views(codec.encode(obj)):
            view = aligned_buffer(len(frame) + shift)[shift:]
            view[:] = frame
            frames.append(view.toreadonly())
        back = codec.decode(frames)
        assert_same(back, obj)
        for part in _parts(back):
            address = part.data_ptr() if isinstance(part, torch.Tensor) else part.ctypes.data
            assert address % part.itemsize == 0


@pytest.mark.plan(42)
@pytest.mark.parametrize("spec", [spec for spec in EVERY if "zstd" not in spec])
def test_a_change_between_encode_and_the_slot_shows_in_large_buffers(spec: str) -> None:
    codec = get_codec(spec)
    array, tensor = np.zeros(5000), torch.zeros(5000)
    for obj in (array, tensor):
        frames = as_views(codec.encode(obj))
        landed = Landed(frames)
        obj[0] = 1.5
        assert float(codec.decode(frames)[0]) == 1.5  # type: ignore[index]
        assert float(codec.decode(landed.views)[0]) == 0  # type: ignore[index]


@pytest.mark.plan(43)
@pytest.mark.parametrize("spec", STRUCTURED)
def test_small_parts_of_a_payload_do_not_keep_all_of_it(spec: str) -> None:
    codec = get_codec(spec)
    obj = [torch.ones(3), np.ones(3), torch.ones(2000), np.random.default_rng(0).random(1_000_000)]
    memory = bytearray(0)
    starts = []
    for frame in as_views(codec.encode(obj)):
        memory += bytes(-len(memory) % 64)
        starts.append((len(memory), len(frame)))
        memory += frame
    frames = give_large([memoryview(memory)[start : start + nbytes] for start, nbytes in starts], 2)
    back: Any = codec.decode(frames)
    small = back[:3]
    del back, frames
    memory.append(0)  # a BufferError where something still holds it
    assert [float(part.sum()) for part in small] == [3, 3, 2000]
    assert small[0].untyped_storage().nbytes() == 12


@pytest.mark.plan(44)
def test_only_frames_refer_to_the_object(codec: Codec) -> None:
    for make in (lambda: np.arange(5000), lambda: torch.ones(50, 100).t(), lambda: torch.ones(3), lambda: np.ones(3)):
        obj: Any = make()
        reference = weakref.ref(obj)
        frames = codec.encode(obj)
        back = codec.decode(Landed(as_views(frames)).views)
        del frames, obj
        gc.collect()
        assert reference() is None
        assert back is not None


@pytest.mark.plan(44)
@pytest.mark.parametrize("inner", ["pickle", "msgpack", "raw"])
def test_compressed_frames_hold_no_more_memory_than_they_have_bytes(inner: str) -> None:
    codec = get_codec(f"{inner}+zstd")
    zeros = np.zeros(NUM_ZEROS, np.uint8)
    codec.encode(zeros)  # makes the contexts
    tracemalloc.start()
    try:
        frames = codec.encode(zeros)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert sum(memoryview(frame).nbytes for frame in frames) < 10_000
    assert held < 50_000


@pytest.mark.plan(45)
@pytest.mark.parametrize("num_elements", [3, 5000])
def test_arrays_stay_read_only_but_with_msgpack_which_says_so(codec: Codec, roundtrip: Any, num_elements: int) -> None:
    for array in (
        np.arange(num_elements),
        np.arange(num_elements * 2).reshape(2, -1).T,
        np.ones(num_elements * 2)[::2],
    ):
        assert roundtrip(codec, array).flags.writeable
        array.flags.writeable = False
        assert roundtrip(codec, array).flags.writeable == (codec.spec in MSGPACK)
    if codec.spec in MSGPACK:
        assert "arrive writable" in (type(get_codec("msgpack")).__doc__ or "")
