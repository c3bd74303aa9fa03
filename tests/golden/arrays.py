"""Golden objects of numpy and torch, each built anew by a function. Add some, never change any."""

from functools import partial
from typing import Any

import numpy as np
import torch

from golden.plain import Makers

_NUMPY_CODES = (
    *("?", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", ">i8", "<f2", "<f4", "<f8", ">f8", "<c8", "<c16"),
    *("<M8", "<M8[ns]", "<m8[25us]"),
)
_TORCH_NAMES = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32"),
    *("float64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
)
_RECORD = np.dtype([("id", "<i4"), ("name", "S3"), ("at", "<f2", (2,))], align=True)


def _array(code: str) -> Any:
    dtype = np.dtype(code)
    return np.arange(1, 1 + 2 * dtype.itemsize, dtype="u1").view(dtype) if code != "?" else np.array([True, False])


def _tensor(name: str) -> Any:
    dtype = getattr(torch, name)
    return torch.arange(1, 1 + 2 * dtype.itemsize, dtype=torch.uint8).view(dtype)


def large_array() -> Any:
    """6144 bytes: larger than what codecs keep inside their head."""
    return np.tile(np.arange(256, dtype="u1"), 24).view("<i4").reshape(3, 512)


def large_tensor() -> Any:
    """The same elements."""
    return torch.from_numpy(large_array())


def _read_only() -> Any:
    array = np.arange(3, dtype="<i2")
    array.flags.writeable = False
    return array


def _records() -> Any:
    return np.array([(1, b"ab", (0.5, -1)), (2, b"c", (0, 2))], _RECORD)


ARRAYS: Makers = {
    "numpy_dtypes_of_arrays": lambda: [_array(code) for code in _NUMPY_CODES],
    "numpy_shapes": lambda: [
        np.array(5, "<i4"),
        np.zeros((2, 0, 3), "<f4"),
        np.arange(6, dtype="<i8").reshape(1, 2, 3),
    ],
    "numpy_fortran_order": lambda: np.asfortranarray(np.arange(6, dtype="<i2").reshape(2, 3)),
    "numpy_scattered": lambda: np.arange(12, dtype="<i2")[::3],
    "numpy_large": large_array,
    "numpy_scalars": lambda: [_array(code)[0] for code in _NUMPY_CODES],
    "numpy_dtypes": lambda: [np.dtype(code) for code in _NUMPY_CODES],
}
"""What msgpack and the pickles keep."""

TENSORS: Makers = {
    "torch_bool": lambda: torch.tensor([True, False]),
    "torch_dtypes_of_tensors": lambda: [_tensor(name) for name in _TORCH_NAMES],
    "torch_shapes": lambda: [torch.tensor(5), torch.zeros(2, 0, 3), torch.arange(6.0).reshape(1, 2, 3)],
    "torch_leaf": lambda: torch.ones(2, requires_grad=True),
    "torch_transposed": lambda: torch.arange(6.0).view(2, 3).t(),
    "torch_large": lambda: [large_tensor(), 1, large_tensor()],
    "torch_dtypes": lambda: [getattr(torch, name) for name in _TORCH_NAMES],
    "torch_device": lambda: [torch.device("cpu"), torch.device("cuda", 7)],
    "torch_size": lambda: torch.Size([2, 3]),
}
"""What msgpack and the pickles keep."""

RAW: Makers = {
    "bytes": lambda: b"\0\xff",
    "bytes_empty": lambda: b"",
    "bytearray": lambda: bytearray(b"\0\xff"),
    "memoryview": lambda: memoryview(bytearray(range(24))).cast("i", (2, 3)),
    "memoryview_read_only": lambda: memoryview(b"\0\xff"),
    "memoryview_empty": lambda: memoryview(bytearray()).cast("d"),
    **{f"numpy_{np.dtype(code).name}_{code}": partial(_array, code) for code in _NUMPY_CODES},
    "numpy_0_dimensions": lambda: np.array(5, "<i4"),
    "numpy_empty": lambda: np.zeros((2, 0, 3), "<f4"),
    "numpy_fortran_order": ARRAYS["numpy_fortran_order"],
    "numpy_scattered": ARRAYS["numpy_scattered"],
    "numpy_read_only": _read_only,
    "numpy_text": lambda: np.array(["a", "t\u00e9"], "<U3"),
    "numpy_bytes": lambda: np.array([b"a", b"\0b"], "S3"),
    "numpy_void": lambda: np.array([b"abc"], "V3"),
    "numpy_records": _records,
    "numpy_large": large_array,
    **{f"torch_{name}": partial(_tensor, name) for name in _TORCH_NAMES},
    "torch_bool": TENSORS["torch_bool"],
    "torch_0_dimensions": lambda: torch.tensor(5),
    "torch_empty": lambda: torch.zeros(2, 0, 3),
    "torch_leaf": TENSORS["torch_leaf"],
    "torch_transposed": TENSORS["torch_transposed"],
    "torch_large": large_tensor,
}
"""What raw takes."""


def _with_note() -> Any:
    tensor: Any = torch.ones(2)
    tensor.note = "kept"
    return tensor


def _twice(item: Any) -> list[Any]:
    return [item, item]


PICKLED: Makers = {
    "numpy_objects": lambda: np.array([1, "a", None], object),
    "numpy_read_only": _read_only,
    "numpy_records": _records,
    "numpy_text": RAW["numpy_text"],
    "numpy_transposed": lambda: np.arange(24, dtype="<i2").reshape(2, 3, 4).transpose(2, 0, 1),
    "numpy_broadcast": lambda: np.broadcast_to(np.arange(3, dtype="<i2"), (4, 3)),
    "torch_broadcast": lambda: torch.arange(3).expand(4, 3),
    "torch_channels_last": lambda: torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "torch_parameter": lambda: torch.nn.Parameter(torch.ones(2), requires_grad=False),
    "torch_attributes": _with_note,
    "torch_sparse": lambda: torch.ones(2, 2).to_sparse(),
    "torch_shared": lambda: _twice(torch.arange(4)),
}
"""What only the pickles keep."""
