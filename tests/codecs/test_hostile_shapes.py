"""Shapes, strides and dtypes that cannot be: refused before anything of that shape is made."""

import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

import hostile
from confined import Confined
from gather_codecs import pickle5

pytest_plugins = ["confined_fixture"]

_MIB = 1 << 20
NDARRAY, TENSOR, NUMPY_SCALAR, NUMPY_DTYPE = 20, 22, 21, 26
FOUR = b"abcd"
SHAPES: list[Any] = [
    *([2], [0], [2**62, 4], [2**63 - 1, 2**63 - 1], [2**33] * 2, [-1], [-1, -1], [2, -2], [True], [1.0], [None], ["1"]),
    *([1] * 65, [1] * 1_000_000, [0] * 65, 4, None, "1", [[1]], {"1": 1}, [2**64 - 1], [0, -1]),
]
DTYPES: list[Any] = [
    *("O", "|O", "|O8", "V9999999", "|V9999999999", "i4,O", "<i4,O", "(2,)i4", "<i8", "<f16", "<c32", "|S", "<U", "V0"),
    *(
        "object",
        "M8[s",
        "<M8[0s]",
        "<M8[99999999999s]",
        "float32",
        "?",
        "",
        255,
        -1,
        None,
        True,
        [],
        ["<i4"],
        {},
        b"<i4",
    ),
]
TENSOR_DTYPES: list[Any] = ["load", "ops", "__dict__", "object", "qint8", "int64", "", 255, None, [], "float32.x"]


def _raw(*head: object) -> list[bytes]:
    text = json.dumps(head).encode()
    return [struct.pack("<I", zlib.crc32(text)) + text, FOUR]


def _message(code: int, *parts: object) -> list[bytes]:
    return [msgpack.packb(msgpack.ExtType(code, msgpack.packb(parts)))]


@pytest.mark.plan(55)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape!r:.30}")
def test_no_codec_makes_an_array_of_a_shape_that_its_bytes_do_not_have(confined: Confined, shape: Any) -> None:
    messages = [
        ("raw", _raw("ndarray", "<i4", shape, "C", False)),
        ("raw", _raw("tensor", "int32", shape, False)),
        ("raw", _raw("memoryview", "i", shape, False)),
        ("raw", _raw("ndarray", ["<i4", shape], [1], "C", False)),
        ("msgpack", _message(NDARRAY, "<i4", shape, "C", FOUR)),
        ("msgpack", _message(TENSOR, "int32", shape, False, FOUR)),
    ]
    for spec, message in messages:
        hostile.refusal(confined.call(hostile.decode, spec, message, more_nbytes=80 * _MIB))


@pytest.mark.plan(55)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_codec_makes_an_array_of_a_dtype_that_does_not_travel(confined: Confined, dtype: Any) -> None:
    if not isinstance(dtype, bytes):
        hostile.refusal(confined.call(hostile.decode, "raw", _raw("ndarray", dtype, [1], "C", False)))
    hostile.refusal(confined.call(hostile.decode, "msgpack", _message(NDARRAY, dtype, [1], "C", FOUR)))
    hostile.refusal(confined.call(hostile.decode, "msgpack", _message(NUMPY_SCALAR, dtype, FOUR)))


@pytest.mark.plan(55)
@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
def test_no_codec_makes_a_tensor_of_a_dtype_that_does_not_travel(confined: Confined, dtype: Any) -> None:
    hostile.refusal(confined.call(hostile.decode, "raw", _raw("tensor", dtype, [1], False)))
    hostile.refusal(confined.call(hostile.decode, "msgpack", _message(TENSOR, dtype, [1], False, FOUR)))


@pytest.mark.plan(55)
@pytest.mark.parametrize(("dtype", "order"), [("<i4", "X"), ("<i4", None), ("<i4", 1), ("<i4", ["C"]), ("<i4", "CF")])
def test_an_order_that_is_none_is_refused(confined: Confined, dtype: str, order: object) -> None:
    hostile.refusal(confined.call(hostile.decode, "raw", _raw("ndarray", dtype, [1], order, False)))
    hostile.refusal(confined.call(hostile.decode, "msgpack", _message(NDARRAY, dtype, [1], order, FOUR)))


def _record(num_fields: int, depth: int) -> dict[str, Any]:
    def record(names: list[str], formats: list[Any], offsets: list[int]) -> dict[str, Any]:
        return {"names": names, "formats": formats, "offsets": offsets, "itemsize": num_fields, "aligned": False}

    described = record([f"f{i}" for i in range(num_fields)], ["|i1"] * num_fields, [*range(num_fields)])
    for _ in range(depth):
        described = record(["f"], [described], [0])
    return described


@pytest.mark.plan(55)
def test_a_record_of_many_fields_and_levels_takes_no_longer_than_its_bytes(confined: Confined) -> None:
    """The description of a dtype is compared once, and not once per level: that would take minutes."""
    head, _ = _raw("ndarray", _record(50_000, 240), [0], "C", False)
    assert len(head) < 1.2 * _MIB
    outcome = confined.call(hostile.outcomes, "raw", [[head, b""]], more_nbytes=512 * _MIB, within_s=30)
    assert outcome.result()[0] in ("value", "DecodeError")


class _Calls:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


def _pickled(function: Callable[..., Any], *args: Any) -> list[bytes]:
    file = io.BytesIO()
    pickle.Pickler(file, 5).dump(_Calls(function, *args))
    return [file.getvalue()]


EIGHT = bytearray(32)


@pytest.mark.plan(55)
@pytest.mark.parametrize(
    "message",
    [
        *(
            _pickled(pickle5.rebuild_tensor, EIGHT, torch.int32, tuple(shape), False)
            for shape in ([9], [-8], [2**62, 4])
        ),
        *(_pickled(pickle5.rebuild_tensor, EIGHT, torch.int32, (2, 4), False, s) for s in ((4, 2), (8, 1), (2**62, 1))),
        *(_pickled(pickle5.rebuild_tensor, EIGHT, torch.int32, (2, 4), False, s) for s in ((-4, 1), (4,), (1, 2, 3))),
        *(
            _pickled(pickle5.rebuild_tensor, EIGHT, torch.int32, (9,), False, (1,)),
            _pickled(pickle5.rebuild_tensor, 2**40),
        ),
        _pickled(pickle5.rebuild_tensor, 2**40, torch.uint8, (2**40,), False),
        _pickled(pickle5.rebuild_times, np.zeros(4, np.int64), np.dtype("O")),
        _pickled(pickle5.rebuild_broadcast, np.zeros(4), (2, 3)),
        _pickled(pickle5.rebuild_broadcast, np.zeros(1), (-1,)),
        *(_pickled(pickle5.rebuild_transposed, np.zeros((2, 3)), axes) for axes in ([0], [0, 1, 2], 2**40)),
    ],
)
def test_what_rebuilds_arrays_in_pickles_never_reaches_beyond_their_bytes(
    confined: Confined, message: list[bytes]
) -> None:
    hostile.refusal(confined.call(hostile.decode, "pickle", message, more_nbytes=8 * _MIB))


@pytest.mark.plan(55)
def test_a_tensor_of_strides_beyond_its_bytes_is_refused_and_one_within_is_not(confined: Confined) -> None:
    within = _pickled(pickle5.rebuild_tensor, EIGHT, torch.int32, (2, 4), False, (4, 1))
    assert confined.call(hostile.outcomes, "pickle", [within]).result() == ["value"]
    beyond = _pickled(pickle5.rebuild_tensor, EIGHT, torch.int32, (2, 4), False, (5, 1))
    hostile.refusal(confined.call(hostile.decode, "pickle", beyond))
