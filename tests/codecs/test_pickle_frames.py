"""The pickle family: large bytes travel uncopied, damaged frames are refused, and nothing is kept that need not be."""

import struct
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gather_codecs.pickle5 import PickleCodec
from gather_core.codec import Codec
from gather_core.errors import DecodeError
from gather_core.registry import get_codec

Land = Callable[[Sequence[Any]], list[memoryview]]
_LARGE = bytes(range(250)) * 2000


@pytest.fixture(params=["pickle", "cloudpickle", "auto"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return get_codec(request.param)


@pytest.mark.parametrize(
    "obj",
    [
        *(
            _LARGE,
            bytearray(_LARGE),
            [_LARGE],
            {"a": _LARGE, "b": [1, (bytearray(_LARGE), "é" * 200_000)]},
            "x" * 300_000,
        ),
        *(
            [_LARGE, torch.zeros(5000), np.zeros(5000), b"x" * 5000],
            [list(range(100_000)), _LARGE, list("ab") * 50_000],
        ),
    ],
    ids=["bytes", "bytearray", "list", "dict", "text", "buffers", "lists"],
)
def test_large_bytes_come_back(codec: Codec, roundtrip: Any, assert_same: Any, obj: object) -> None:
    assert_same(roundtrip(codec, obj), obj)


def test_large_bytes_are_not_copied_by_encode(codec: Codec) -> None:
    mutable = bytearray(_LARGE)
    frames = codec.encode([{"a": _LARGE}, mutable])
    assert any(frame is _LARGE for frame in frames)
    mutable[:3] = b"new"
    assert any(bytes(frame[:3]) == b"new" for frame in frames)


def test_large_bytes_in_two_places_are_sent_once_and_stay_shared(codec: Codec, roundtrip: Any) -> None:
    obj = [_LARGE, {"again": _LARGE}]
    assert sum(frame is _LARGE for frame in codec.encode(obj)) == 1
    back = roundtrip(codec, obj)
    assert back[0] is back[1]["again"]


class _Shrinks:
    """Takes away what was pickled before it."""

    def __init__(self, victim: bytearray) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        self.victim.clear()
        return int, ()


@pytest.mark.plan(33)
def test_a_bytearray_cannot_be_resized_while_it_is_sent(codec: Codec) -> None:
    victim = bytearray(_LARGE)
    with pytest.raises(BufferError):
        codec.encode([victim, _Shrinks(victim)])
    assert victim == _LARGE


class _Raises:
    def __reduce__(self) -> Any:
        raise ValueError("midway")


@pytest.mark.plan(33)
def test_a_reduction_that_raises_midway_leaves_nothing_of_the_object(codec: Codec, roundtrip: Any) -> None:
    with pytest.raises(ValueError, match="midway"):
        codec.encode([_LARGE, np.zeros(5000), _Raises()])
    assert len(codec.encode([1])) == 1
    assert roundtrip(codec, [_LARGE]) == [_LARGE]


class _Error(Exception):
    pass


@pytest.mark.plan(28)
def test_cycles_wide_memos_and_exceptions_come_back(codec: Codec, roundtrip: Any) -> None:
    cycle: list[Any] = [{}]
    cycle[0]["me"] = cycle
    back = roundtrip(codec, cycle)
    assert back[0]["me"] is back
    parts = [(number,) for number in range(10_000)]
    wide = roundtrip(codec, [parts, parts[::-1]])
    assert wide[0] == parts
    assert all(first is last for first, last in zip(wide[0], reversed(wide[1]), strict=True))
    error = roundtrip(codec, _Error("text", 3))
    assert (type(error), error.args) == (_Error, ("text", 3))


@pytest.mark.plan(25)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16, torch.int16, torch.uint8], ids=str)
@pytest.mark.parametrize("num_elements", [3, 5001])
def test_tensors_are_aligned_whatever_is_before_them(
    codec: Codec, roundtrip: Any, assert_same: Any, dtype: torch.dtype, num_elements: int
) -> None:
    obj = [b"odd" * 3, torch.ones(5001, dtype=torch.uint8), torch.ones(num_elements, dtype=dtype), _LARGE[:-1]]
    back = roundtrip(codec, obj)
    assert_same(back, obj)
    assert back[2].data_ptr() % dtype.itemsize == 0


_MESSAGES: dict[str, list[Any]] = {
    "buffers": [np.arange(5000), torch.zeros(7000)],
    "pieces": [_LARGE, np.arange(5000), bytearray(_LARGE)],
}


@pytest.mark.plan(30)
@pytest.mark.parametrize("message", _MESSAGES)
def test_missing_extra_short_long_and_swapped_frames_are_refused(codec: Codec, land: Land, message: str) -> None:
    frames = [bytes(memoryview(frame).cast("B")) for frame in codec.encode(_MESSAGES[message])]
    damaged = [[*frames, b""], [*frames, bytes(9)], [frames[1], frames[0], *frames[2:]], frames[:1]]
    for index, frame in enumerate(frames):
        before, after = frames[:index], frames[index + 1 :]
        damaged += [
            [*before, *after],
            [*before, frame[:-1], *after],
            [*before, frame + b"x", *after],
            [*before, b"", *after],
        ]
    damaged.append([*frames[:-2], frames[-1], frames[-2]])
    for others in damaged:
        with pytest.raises(DecodeError):
            codec.decode(land(others))


@pytest.mark.parametrize("sizes", [[], [500_000], [10, 500_000, 3, 0], [10, 499_999, 3], [10, 500_000, 2**63]], ids=str)
def test_a_wrong_list_of_pieces_is_refused(land: Land, sizes: list[int]) -> None:
    listed, *pieces = PickleCodec().encode(_LARGE)
    assert [len(piece) for piece in pieces] == [7, 500_000, 2]
    assert bytes(listed) == struct.pack("<B3Q", 0, 7, 500_000, 2)
    with pytest.raises(DecodeError):
        PickleCodec().decode(land([struct.pack(f"<B{len(sizes)}Q", 0, *sizes), *pieces]))


def test_bytes_cut_from_a_large_part_are_refused_though_the_rest_of_the_pickle_would_fit(land: Land) -> None:
    frames = PickleCodec().encode([np.arange(5), bytearray(_LARGE)])
    with pytest.raises(DecodeError, match="not the pieces of pickle"):
        PickleCodec().decode(land([frame[:-1] if len(frame) == len(_LARGE) else frame for frame in frames]))


def test_bytes_behind_the_last_piece_are_refused_with_their_number(land: Land) -> None:
    _listed, *pieces = PickleCodec().encode([_LARGE])
    pieces[-1] = bytes(pieces[-1]) + b"abc"
    sizes = [len(piece) for piece in pieces]
    with pytest.raises(DecodeError, match=r"^3 bytes behind the pickle"):
        PickleCodec().decode(land([struct.pack("<B3Q", 0, *sizes), *pieces]))


@pytest.mark.plan(43)
def test_a_small_tensor_does_not_keep_the_memory_of_what_came_with_it(codec: Codec) -> None:
    frames = [bytearray(memoryview(frame).cast("B")) for frame in codec.encode([torch.ones(3), np.ones(3), _LARGE])]
    decoded: Any = codec.decode([memoryview(frame) for frame in frames])
    small, array, _ = decoded
    assert small.untyped_storage().nbytes() == 12
    for frame in frames:
        frame.append(0)  # a BufferError where something still holds it
    assert (small.sum(), array.sum()) == (3, 3)


@pytest.mark.parametrize("obj", [np.ones(5000), torch.ones(5000), torch.ones(50, 100).t()], ids=["C", "tensor", "T"])
@pytest.mark.plan(40)
def test_a_decoded_array_outlives_a_borrowed_frame_and_a_gift_is_kept(codec: Codec, land: Land, obj: Any) -> None:
    head, frame = codec.encode(obj)
    borrowed: Any = codec.decode(land([head, frame]))
    gift = bytearray(memoryview(frame).cast("B"))
    kept: Any = codec.decode([memoryview(head), memoryview(gift)])
    gift[:] = bytes(len(gift))
    borrowed *= 2
    assert (borrowed.sum(), kept.sum()) == (10_000, 0)


@pytest.mark.plan(44)
def test_nothing_of_the_object_is_kept_once_its_frames_are_gone(codec: Codec) -> None:
    array, tensor = np.zeros(5000), torch.zeros(50, 100).t()
    references: list[Any] = [weakref.ref(array), weakref.ref(tensor)]
    frames = codec.encode([array, tensor, bytearray(_LARGE)])
    assert len(frames) > 3
    del frames, array, tensor
    assert [reference() for reference in references] == [None, None]


class _Kept:
    pass


@pytest.mark.parametrize("num_parts", [1, 3000, 100_000])
def test_a_pickler_that_is_used_again_keeps_nothing_of_what_it_wrote(codec: Codec, num_parts: int) -> None:
    kept = _Kept()
    reference = weakref.ref(kept)
    codec.encode([kept, [[number] for number in range(num_parts)]])
    del kept
    assert reference() is None


@pytest.mark.parametrize("spec", ["cloudpickle", "auto"])
def test_functions_of_one_object_share_globals_and_those_of_the_next_object_have_their_own(
    spec: str, roundtrip: Any
) -> None:
    codec = get_codec(spec)
    for _ in range(2):
        codec.encode(None)  # whatever was before, there is a pickler that is used again
    names: dict[str, Any] = {"__name__": "first"}
    exec("def f(): pass\ndef g(): pass", names)
    f, g = roundtrip(codec, [names["f"], names["g"]])
    assert f.__globals__ is g.__globals__
    names["__name__"] = "second"
    second = roundtrip(codec, names["f"])
    assert [made.__globals__["__name__"] for made in (f, second)] == ["first", "second"]


@pytest.mark.parametrize("spec", ["cloudpickle", "auto"])
def test_nothing_of_a_function_that_went_by_value_is_kept(spec: str) -> None:
    kept = _Kept()
    reference = weakref.ref(kept)
    get_codec(spec).encode([lambda value=kept: value])
    del kept
    assert reference() is None


def test_small_and_large_objects_in_turns_give_the_same_frames(codec: Codec) -> None:
    objects: list[Any] = [{"a": 1}, [str(number) for number in range(5000)], [[number] for number in range(200_000)]]
    expected = [[bytes(frame) for frame in codec.encode(obj)] for obj in objects]
    for order in ((0, 1, 0, 1, 2, 0), (2, 2, 1, 1, 0, 2)):
        for index in order:
            assert [bytes(frame) for frame in codec.encode(objects[index])] == expected[index]


def test_bytes_behind_and_between_the_frames_of_a_long_pickle_are_refused(land: Land, roundtrip: Any) -> None:
    numbers = list(range(100_000))
    (head,) = map(bytes, PickleCodec().encode(numbers))
    assert roundtrip(PickleCodec(), numbers) == numbers
    second = 11 + int.from_bytes(head[3:11], "little")
    assert head[second : second + 1] == b"\x95"
    with pytest.raises(DecodeError, match="1 bytes behind"):
        PickleCodec().decode(land([head + b"."]))
    for damaged in (head[:-1], head[:second] + b"\x95" + head[second:], head[: second + 9]):
        with pytest.raises(DecodeError):
            PickleCodec().decode(land([damaged]))
