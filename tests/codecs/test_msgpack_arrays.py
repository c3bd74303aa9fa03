"""Msgpack's arrays, scalars and dtypes of text, bytes and records, and the layouts of its tensors: exact or refused."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gather_codecs.dtypes import build_dtype, describe_dtype
from gather_codecs.message_types import NDARRAY, NUMPY_SCALAR, TENSOR
from gather_codecs.messagepack import MessagePackCodec
from gather_core.errors import DecodeError, EncodeError

Land = Callable[[Sequence[Any]], list[memoryview]]
CODEC = MessagePackCodec()
_NUMPY_DTYPE = 26
DTYPES: list[np.dtype[Any]] = [
    *map(np.dtype, ["<U3", ">U2", "S5", "V7", ">f8", ">M8[ns]", "M8[25s]", "m8[D]", "M8", ">c8", "i4, (2,3)>U2"]),
    np.dtype([("a", "i4"), ("b", [("c", "M8[ns]"), ("d", ">U3", (2, 3))])]),
    np.dtype("i1, i8", align=True),
    np.dtype({"names": ["a", "b"], "formats": ["i4", "f8"], "offsets": [8, 0], "itemsize": 24}),
    np.dtype({"names": ["all", "low"], "formats": ["<u4", "<u2"], "offsets": [0, 0], "itemsize": 4}),
    np.dtype([("\u00e9", np.dtype("i1, i2", align=True))]),
]


def _filled(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> "np.ndarray[Any, Any]":
    array = np.zeros(shape, dtype)
    array.reshape(-1).view("u1")[:] = np.arange(array.nbytes) % 2
    return array


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3), (40, 30)], ids=str)
def test_arrays_of_every_dtype_come_back(
    roundtrip: Any, assert_same: Any, dtype: "np.dtype[Any]", shape: tuple[int, ...]
) -> None:
    array = _filled(shape, dtype)
    back = roundtrip(CODEC, {"a": [array]})["a"][0]
    assert_same(back, array)
    assert repr(back.dtype) == repr(dtype)
    assert back.flags.writeable


def _all_bytes(array: "np.ndarray[Any, Any]") -> bytes:
    """Also those between the fields of records, which `tobytes` of scattered ones leaves as its memory has them."""
    return array.view(f"V{array.dtype.itemsize}").tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scattered_arrays_come_back_and_fortran_order_stays(roundtrip: Any, dtype: "np.dtype[Any]") -> None:
    array = _filled((4, 6), dtype)
    for view in (array[::2, ::-3], array.T, array[:, 1:2], np.broadcast_to(array[0], (3, 6))):
        back = roundtrip(CODEC, view)
        assert (back.dtype, back.shape, _all_bytes(back)) == (view.dtype, view.shape, _all_bytes(view))
        assert back.flags.f_contiguous or not view.flags.f_contiguous


_MORE_CODES: list[Any] = ["U", "S", "V", "i4", ("i4", (2, 3))]


@pytest.mark.parametrize("dtype", [*DTYPES, *[np.dtype(code) for code in _MORE_CODES]], ids=str)
def test_dtypes_come_back(roundtrip: Any, dtype: "np.dtype[Any]") -> None:
    (back,) = roundtrip(CODEC, [dtype])
    assert (back, repr(back), back.num) == (dtype, repr(dtype), dtype.num)


@pytest.mark.parametrize(
    "scalar",
    [
        *(np.str_(""), np.str_("a\0"), np.str_("\ud800"), np.bytes_(b""), np.bytes_(b"a\0"), np.void(b"")),
        *(np.void(b"ab\0"), *(_filled((2,), dtype)[1] for dtype in DTYPES if dtype.kind != "U")),
    ],
    ids=lambda scalar: f"{type(scalar).__name__} {scalar.dtype}",
)
def test_scalars_come_back(roundtrip: Any, scalar: Any) -> None:
    (back,) = roundtrip(CODEC, [scalar])
    assert (type(back), back.dtype, back.tobytes()) == (type(scalar), scalar.dtype, scalar.tobytes())
    if isinstance(scalar, str | bytes):  # in an array, zeros at the end would not count
        assert len(back) == len(scalar)


def test_records_that_are_keys_stay_keys(roundtrip: Any) -> None:
    records = np.array([(1, "a"), (2, "b")], "i4, U1")
    assert roundtrip(CODEC, records[0]).flags.writeable
    records.flags.writeable = False
    back = roundtrip(CODEC, {records[1]: 5})
    assert back == {records[1]: 5}
    assert not next(iter(back)).flags.writeable


class Text(np.str_):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    "bad",
    [
        *(np.array([None]), np.zeros(2, "i4, O"), np.zeros(2, [("a", [("b", "O")])]), np.zeros(2, "V0")),
        *(np.zeros(2, np.dtype([])), np.zeros(2, "i4, g"), np.zeros(2, np.dtype("U3", metadata={"a": 1}))),
        *(np.zeros(2, np.dtype({"names": ["a"], "formats": ["i4"], "titles": ["t"]})), Text("x"), np.longdouble(1)),
        *(np.zeros(1, np.dtype((np.record, [("a", "i4")]))), np.rec.array([(1,)], dtype=[("a", "i4")])[0]),
        *(np.dtype("U3", metadata={"a": 1}), np.dtype("U", metadata={"a": 1}), np.dtype([("a", "O")]), np.dtype([])),
    ],
    ids=repr,
)
def test_what_has_no_description_is_refused_with_its_path(bad: object) -> None:
    with pytest.raises(EncodeError, match=r"^msgpack cannot encode \$\.batch\[1\]: .*(dtype|exactly)"):
        CODEC.encode({"batch": [0, bad]})


RECORD: dict[str, Any] = {"names": ["a"], "formats": ["<i4"], "offsets": [0], "itemsize": 4, "aligned": False}
BAD_DTYPES: list[object] = [
    *("O", "|O", "<f16", "<i4,<i4", "|V0", "<U0", "|S99999999999", "<U\u0661", "|T16", "<i4\n", "i4", "U", "object"),
    *(5, None, True, b"<i4", [], {}, ["<i4"], ["<i4", 1], ["<i4", [2**40]], ["<i4", [-1]], ["O", [1]]),
    *(RECORD | {"formats": formats} for formats in (["O"], ["|O"], ["<i8"], [["<i4"]], [["<i4", [2**40]]], 5, [], [5])),
    *(RECORD | {"names": names} for names in ([], ["a", "a"], [5], "a", [b"a"], None)),
    *(RECORD | {"offsets": offsets} for offsets in ([-4], [1], [2**62], [], ["0"], [True], None)),
    *(RECORD | {"itemsize": itemsize} for itemsize in (0, 3, -4, 2**31, 2**62, "4", 4.0, None)),
    *(RECORD | change for change in ({"aligned": 1}, {"more": 1}, {"titles": ["t"]}, {"formats": [RECORD], "x": 1})),
    {key: value for key, value in RECORD.items() if key != "aligned"},
]


def _message(code: int, *parts: object) -> list[bytes]:
    return [msgpack.packb(msgpack.ExtType(code, msgpack.packb(parts)))]


@pytest.mark.parametrize("description", BAD_DTYPES, ids=repr)
def test_a_hostile_dtype_is_refused_wherever_it_stands(land: Land, description: object) -> None:
    with pytest.raises(ValueError):
        build_dtype(description)
    empty = isinstance(description, str) and description in {"<U0", "|V0"}
    for message in (
        _message(NDARRAY, description, [1], "C", b"abcd"),
        _message(NDARRAY, description, [0], "C", b""),
        *([] if description == "U" else [_message(NUMPY_SCALAR, description, b"abcd")]),
        _message(NUMPY_SCALAR, description, b"abcd", True),
        *([] if empty else [_message(_NUMPY_DTYPE, description)]),
    ):
        with pytest.raises(DecodeError):
            CODEC.decode(land(message))


def test_a_subarray_is_a_dtype_but_neither_that_of_an_array_nor_of_a_scalar(land: Land) -> None:
    assert CODEC.decode(land(_message(_NUMPY_DTYPE, ["<i2", [2]]))) == np.dtype("2i2")
    for message in (
        _message(NDARRAY, ["<i2", [2]], [1], "C", b"abcd"),
        _message(NDARRAY, ["<i2", [2]], [0], "C", b""),
        _message(NUMPY_SCALAR, ["<i2", [2]], b"abcd"),
    ):
        with pytest.raises(DecodeError):
            CODEC.decode(land(message))


def test_a_nested_dtype_is_built_in_time_and_a_deep_one_is_refused(land: Land) -> None:
    description: Any = "<i4"
    for _ in range(40):
        description = RECORD | {"formats": [description]}
    back: Any = CODEC.decode(land(_message(_NUMPY_DTYPE, description)))
    assert describe_dtype(back) == description
    for _ in range(100_000):
        description = [description]
    with pytest.raises(ValueError):
        build_dtype(description)


FIELDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["<i4", "|S5", "<U2", "O", "C", "a", "U", b"abcd"]),
    lambda inner: st.lists(inner, max_size=4) | st.fixed_dictionaries(dict.fromkeys(RECORD, inner)),
    max_leaves=12,
)


@given(st.sampled_from([NDARRAY, NUMPY_SCALAR, TENSOR, _NUMPY_DTYPE]), st.lists(FIELDS, max_size=5))
def test_any_parts_are_an_object_or_a_decode_error(code: int, parts: list[Any]) -> None:
    with suppress(DecodeError, OverflowError):  # OverflowError: msgpack has no such int
        CODEC.decode([memoryview(frame) for frame in _message(code, *parts)])


IMAGES = torch.arange(2 * 3 * 20 * 20, dtype=torch.float32).view(2, 3, 20, 20)


@pytest.mark.parametrize(
    "tensor",
    [
        *(IMAGES.to(memory_format=torch.channels_last), IMAGES[:, :1].to(memory_format=torch.channels_last)),
        *(
            IMAGES.permute(3, 1, 0, 2),
            IMAGES[0, 0].t(),
            IMAGES[0, 0].t().bfloat16(),
            IMAGES[:1],
            torch.tensor([1j]).t(),
        ),
        IMAGES.permute(3, 1, 0, 2).clone().requires_grad_(),
    ],
    ids=lambda tensor: str(tensor.stride()),
)
def test_tensors_without_gaps_keep_their_strides(roundtrip: Any, assert_same: Any, tensor: torch.Tensor) -> None:
    (back,) = roundtrip(CODEC, [tensor])
    assert_same(back, tensor)
    assert back.stride() == tensor.stride()
    assert back.requires_grad == tensor.requires_grad
    back.detach().fill_(0)


def test_a_transposed_tensor_is_not_copied_by_encode() -> None:
    tensor = IMAGES.clone().permute(3, 1, 0, 2)
    _, frame = CODEC.encode(tensor)
    tensor.zero_()
    assert not any(frame)


@pytest.mark.parametrize(
    "tensor", [IMAGES[::2, :, ::3], IMAGES[0, 0, :1].expand(30, 20), IMAGES[0, 0].unfold(0, 3, 1)], ids=str
)
def test_other_tensors_arrive_row_major_and_no_larger_than_their_bytes(
    roundtrip: Any, assert_same: Any, tensor: torch.Tensor
) -> None:
    back = roundtrip(CODEC, tensor)
    assert_same(back, tensor)
    assert back.is_contiguous()
    assert sum(len(frame) for frame in CODEC.encode(tensor)) >= 4 * tensor.numel()


BAD_STRIDES: list[object] = [
    *([1], [1, 2, 3], [0, 1], [1, 0], [3, 2], [1, 1], [2, 2], [-2, 1], [2, -1], [2**62, 1], [2**70, 1]),
    *([2.0, 1.0], [True, True], ["2", "1"], 5, "21", b"\2\1", {}, []),
]


@pytest.mark.parametrize("strides", BAD_STRIDES, ids=repr)
def test_strides_that_leave_the_memory_or_overlap_are_refused(land: Land, strides: object) -> None:
    fits: Any = CODEC.decode(land(_message(TENSOR, "uint8", [3, 2], False, b"abcdef", [1, 3])))
    assert fits.tolist() == [[97, 100], [98, 101], [99, 102]]
    with suppress(OverflowError):  # msgpack has no such int
        with pytest.raises(DecodeError):
            CODEC.decode(land(_message(TENSOR, "uint8", [3, 2], False, b"abcdef", strides)))
