"""RawCodec: one array, tensor or bytes-like, exact or refused; a head that is not its own is a DecodeError."""

import array
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresh_python import run_python
from gather_codecs.raw import RawCodec
from gather_core.codec import Trust
from gather_core.errors import DecodeError, EncodeError

Land = Callable[[Sequence[Any]], list[memoryview]]
CODEC = RawCodec()
TENSOR_DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64),
    *(torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize(
    "code", ["?", "i1", "u8", ">i4", "f2", "c16", "M8[ns]", "M8[25s]", "m8[D]", "M8", "S3", ">U2", "V5"]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3)], ids=str)
@pytest.mark.plan(14, 17)
def test_arrays_of_every_dtype_come_back(roundtrip: Any, assert_same: Any, code: str, shape: tuple[int, ...]) -> None:
    elements = np.zeros(shape, code)
    elements.reshape(-1).view("u1")[:] = np.arange(elements.nbytes) % 2
    back = roundtrip(CODEC, elements)
    assert_same(back, elements)
    assert back.flags.writeable


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype([("a", "i4"), ("b", [("c", "M8[ns]"), ("d", ">U3", (2, 3))])]),
        np.dtype("i1, i8", align=True),
        np.dtype({"names": ["a", "b"], "formats": ["i4", "f8"], "offsets": [8, 0], "itemsize": 24}),
        np.dtype([("é", np.dtype("i1, i2", align=True))]),
    ],
)
@pytest.mark.plan(17)
def test_records_keep_their_layout(roundtrip: Any, assert_same: Any, dtype: "np.dtype[Any]") -> None:
    back = roundtrip(CODEC, np.zeros((2, 3), dtype))
    assert_same(back, np.zeros((2, 3), dtype))
    assert repr(back.dtype) == repr(dtype)


@pytest.mark.parametrize(
    "elements",
    [
        *(np.arange(9)[::-2], np.arange(6).reshape(2, 3).T, np.arange(6).astype("M8[D]").reshape(2, 3).T),
        *(np.zeros((2, 0, 3), order="F"), np.zeros((0, 2**40), "i1"), np.broadcast_to(np.arange(3), (2, 3))),
    ],
)
@pytest.mark.plan(15, 16)
def test_arrays_of_every_layout_come_back(roundtrip: Any, assert_same: Any, elements: np.ndarray[Any, Any]) -> None:
    back = roundtrip(CODEC, elements)
    assert_same(back, elements)
    assert back.flags.f_contiguous or not elements.flags.f_contiguous
    assert back.flags.writeable == elements.flags.writeable


@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 2**62, 1), (3, 5), (1,) * 33], ids=str)
@pytest.mark.plan(14, 15)
def test_tensors_of_every_dtype_come_back(
    roundtrip: Any, assert_same: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    numel = 0 if 0 in shape else int(np.prod(shape))
    tensor = (torch.arange(numel * dtype.itemsize, dtype=torch.uint8) % 2).view(dtype).view(shape)
    assert_same(roundtrip(CODEC, tensor), tensor)


@pytest.mark.plan(22)
def test_what_was_computed_arrives_detached_and_leaves_keep_requires_grad(roundtrip: Any) -> None:
    leaf = torch.ones(3, requires_grad=True)
    assert roundtrip(CODEC, leaf).requires_grad
    assert not roundtrip(CODEC, leaf * 2).requires_grad


@pytest.mark.parametrize(
    "view",
    [
        *(memoryview(b""), memoryview(b"").cast("i"), memoryview(bytearray(b"abc")), memoryview(b"abcd").cast("I")),
        *(
            memoryview(bytearray(24)).cast("d", (1, 3)),
            memoryview(b"\0\1").cast("?"),
            memoryview(array.array("q", [5])),
        ),
        *(np.arange(6).reshape(2, 3).data, np.array(5.0).data),
    ],
)
def test_memoryviews_keep_format_shape_and_whether_they_can_be_written(
    roundtrip: Any, assert_same: Any, view: memoryview
) -> None:
    assert_same(roundtrip(CODEC, view), view)


def _address(obj: Any) -> int:
    if isinstance(obj, torch.Tensor | np.ndarray):
        return int(obj.data_ptr() if isinstance(obj, torch.Tensor) else obj.ctypes.data)
    return int(np.frombuffer(obj, np.uint8).ctypes.data)


@pytest.mark.parametrize(
    "obj", [b"x" * 50, bytearray(50), memoryview(bytearray(50)), np.zeros((7, 3), order="F"), torch.zeros(5)], ids=str
)
def test_elements_are_not_copied_by_encode(obj: object) -> None:
    head, elements = CODEC.encode(obj)
    assert _address(elements) == _address(obj)
    assert len(head) < 60


def test_elements_in_writable_memory_are_not_copied_by_decode() -> None:
    frames = [memoryview(bytearray(frame)) for frame in CODEC.encode(np.zeros(50))]
    back: Any = CODEC.decode(frames)
    frames[1][:8] = struct.pack("d", 2.5)
    assert back[0] == 2.5


class Text(bytes):
    pass


def _with_grad() -> torch.Tensor:
    leaf = torch.ones(3, requires_grad=True)
    leaf.grad = torch.zeros(3)
    return leaf


def _with_attribute() -> torch.Tensor:
    tensor = torch.zeros(1)
    tensor.tag = 1  # type: ignore[attr-defined]
    return tensor


def _released() -> memoryview:
    view = memoryview(b"x")
    view.release()
    return view


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        *((obj, "raw takes exactly one bytes.* use pickle or msgpack") for obj in (None, 1, "x", [b"x"], Text(b"x"))),
        *((obj, "raw takes exactly one .*numpy") for obj in (np.float64(1), np.bytes_(b"x"), np.ma.array([1]))),
        *(
            (obj, "raw takes exactly one .*array")
            for obj in (array.array("i", [1]), np.zeros(1, "i4").view(np.recarray))
        ),
        *((obj, "dense torch.Tensor") for obj in (torch.eye(2).to_sparse(), torch.empty(1, device="meta"))),
        *((obj, "without attributes") for obj in (torch.nn.Parameter(torch.ones(1)), _with_attribute())),
        *((obj, "no array of dtype") for obj in (np.array([None]), np.zeros(2, "i4, O"), np.zeros(2, "V0"))),
        *((obj, "no array of dtype") for obj in (np.zeros(2, np.longdouble), np.zeros(2, np.dtype([])))),
        (np.zeros(2, np.dtype("i4", metadata={"a": 1})), "no array of dtype"),
        (np.zeros(2, np.dtype({"names": ["a"], "formats": ["i4"], "titles": ["t"]})), "no array of dtype"),
        (np.zeros(1, np.dtype((np.record, [("a", "i4")]))), "no array of dtype"),
        *((view, "C-contiguous memoryviews") for view in (memoryview(b"abcd")[::2], np.zeros((2, 3)).T.data)),
        *((view, "C-contiguous memoryviews") for view in (np.zeros((0, 3)).data, np.zeros(2, ">i4").data)),
        *((_released(), "released"), (_with_grad(), r"would lose the \.grad")),
    ],
    ids=lambda obj: type(obj).__name__,
)
@pytest.mark.plan(17, 24)
def test_what_it_cannot_keep_is_refused_with_what_to_use(obj: object, text: str) -> None:
    with pytest.raises(EncodeError, match=text):
        CODEC.encode(obj)


def _head(*fields: object) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<I", zlib.crc32(text)) + text


RECORD = {"names": ["a"], "formats": ["<i4"], "offsets": [0], "itemsize": 4, "aligned": False}


BAD_DTYPES: list[object] = [
    *("O", "|O", "<f16", "<i4,<i4", "V0", "<i8", 5, None, [], {}, ["<i4", [2**40]], ["<i4", 1]),
    *(RECORD | {"formats": formats} for formats in (["O"], ["<i8"], [["<i4"]], [["<i4", [2**40]]], 5, [])),
    *(RECORD | {"names": names} for names in ([], ["a", "a"], [5], "a")),
    *(RECORD | {"offsets": offsets} for offsets in ([-4], [1], [])),
    *(RECORD | change for change in ({"itemsize": 0}, {"itemsize": "4"}, {"aligned": 1}, {"more": 1})),
]
BAD_SHAPES: list[object] = [[2], [-1, -1], ["1"], [True], 1, None, [1] * 65]
BAD_ORDERS: list[object] = ["X", "", None, 1]
BAD_VIEWS: list[tuple[object, object]] = [("P", [1]), ("i", [2]), (5, [4]), ("i", [-1, -1]), ("i", 1)]
NO_TENSOR_DTYPES: list[object] = ["load", "int64", "object", None, []]


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"\0\0\0\0", _head()[:4], struct.pack("<I", zlib.crc32(b"5")) + b"5", _head(), _head("no such kind")),
        *(_head(["bytes"]), _head({}), _head("bytes", 1), _head("bytearray", 1), _head("memoryview", "i", [1])),
        *(_head("memoryview", code, shape, False) for code, shape in BAD_VIEWS),
        *(_head("ndarray", dtype, [1], "C", False) for dtype in BAD_DTYPES),
        *(_head("ndarray", "<i4", shape, "C", False) for shape in BAD_SHAPES),
        *(_head("ndarray", "<i4", [1], order, False) for order in BAD_ORDERS),
        *(_head("tensor", dtype, [1], False) for dtype in NO_TENSOR_DTYPES),
        *(_head("tensor", "float32", [1]), _head("tensor", "int32", [1], True), _head("tensor", "float32", [2], False)),
    ],
)
def test_a_head_that_it_does_not_write_is_a_decode_error(land: Land, head: bytes) -> None:
    with pytest.raises(DecodeError):
        CODEC.decode(land([head, b"abcd"]))


def test_a_deeply_nested_head_is_a_decode_error(land: Land) -> None:
    text = b"[" * 100_000
    with pytest.raises(DecodeError):
        CODEC.decode(land([struct.pack("<I", zlib.crc32(text)) + text, b""]))


@pytest.mark.parametrize("obj", [b"abc", np.zeros((2, 3)), torch.ones(2), np.zeros(2, "i4, f8")], ids=str)
def test_every_damaged_byte_of_a_head_is_a_decode_error(land: Land, obj: object) -> None:
    head, elements = CODEC.encode(obj)
    for position in range(len(head)):
        damaged = bytearray(head)
        damaged[position] ^= 1
        with pytest.raises(DecodeError, match="checksum"):
            CODEC.decode(land([damaged, elements]))


@pytest.mark.parametrize("num_frames", [0, 1, 3])
def test_another_number_of_frames_is_a_decode_error(land: Land, num_frames: int) -> None:
    with pytest.raises(DecodeError, match=f"2 frames, not {num_frames}"):
        CODEC.decode(land([_head("bytes"), b"", b""][:num_frames]))


FIELDS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["<i4", "float32", "C", "|S5", "B", "names", "formats"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(RECORD)), inner),
    max_leaves=10,
)


@given(
    st.sampled_from(["bytes", "memoryview", "ndarray", "tensor"]), st.lists(FIELDS, max_size=4), st.binary(max_size=9)
)
def test_any_head_is_an_object_or_a_decode_error(kind: str, fields: list[Any], elements: bytes) -> None:
    with suppress(DecodeError):
        CODEC.decode([memoryview(_head(kind, *fields)), memoryview(elements)])


def test_it_declares_that_it_only_builds_data() -> None:
    assert CODEC.trust is Trust.DATA
    assert CODEC.spec == CODEC.fingerprint() == "raw"


def test_bytes_travel_without_numpy_and_torch() -> None:
    script = (
        "import sys; from gather_codecs.raw import RawCodec; c = RawCodec()\n"
        "print(c.decode([memoryview(f) for f in c.encode(b'x')]), *{'numpy', 'torch'} & set(sys.modules))"
    )
    assert run_python(script) == "b'x'"
