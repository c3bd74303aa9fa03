"""Torch tensors and numpy arrays as bytes and back, for all codecs: elements only, never the storage behind a view."""

import functools
import math
from typing import TYPE_CHECKING, Any

from gather_core.codec import TensorDevice

if TYPE_CHECKING:
    import numpy as np
    import torch

_MAX_DIMS = 64
"""As many as numpy and torch allow."""
_DTYPE_NAMES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)


@functools.cache
def _dtypes() -> "dict[str, torch.dtype]":
    """Of the dtypes that travel as raw elements, those that the installed torch has."""
    import torch

    return {name: getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)}


@functools.cache
def _names() -> "dict[torch.dtype, str]":
    return {dtype: name for name, dtype in _dtypes().items()}


def dtype_name(dtype: "torch.dtype") -> str | None:
    """The name of a dtype that travels as raw elements, or None."""
    return _names().get(dtype)


def dtype_of(name: object) -> "torch.dtype":
    """The dtype of that name.

    Raises:
        ValueError: No dtype that travels has this name, or the installed torch lacks it.
    """
    dtype = _dtypes().get(name) if isinstance(name, str) else None
    if dtype is None:
        raise ValueError(f"unknown tensor dtype {name!r:.40}")
    return dtype


def is_dense(tensor: "torch.Tensor") -> bool:
    """Whether the elements, dtype and shape are the whole value: not sparse, quantized, nested or on `meta`."""
    import torch

    return (
        tensor.layout is torch.strided
        and tensor.dtype in _names()
        and not tensor.is_nested
        and tensor.device.type != "meta"
    )


def arrives_with_grad(tensor: "torch.Tensor") -> bool:
    """Whether `requires_grad` travels: it does on leaves, what was computed arrives detached."""
    return tensor.requires_grad and tensor.is_leaf


def tensor_bytes(tensor: "torch.Tensor") -> "np.ndarray[Any, Any]":
    """The elements in row-major order, as a uint8 array of shape (nbytes,); a contiguous CPU tensor is not copied."""
    import torch

    dense = tensor.detach()
    # On tensors that need none of these, asking is cheaper than calling.
    if dense.is_conj() or dense.is_neg():
        dense = dense.resolve_conj().resolve_neg()
    if dense.device.type != "cpu":
        dense = dense.cpu()
    if not dense.is_contiguous():
        dense = dense.contiguous()
    # A tensor of one element counts as contiguous whatever its stride is; as_strided makes it 1 again.
    elements = dense.as_strided((dense.numel(),), (1,), dense.storage_offset())
    flat: np.ndarray[Any, Any] = elements.view(torch.uint8).numpy()
    return flat


def array_bytes(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The elements as they lie in memory, row-major if they lie scattered: a uint8 array of shape (nbytes,)."""
    import numpy as np

    dense = array.T if array.flags.f_contiguous else np.ascontiguousarray(array)
    return dense.reshape(-1).view(np.uint8)


def check_shape(shape: object, itemsize: int, nbytes: int) -> tuple[int, ...]:
    """The shape of an array of `nbytes` bytes as a tuple, checked before anything of that shape is made.

    Raises:
        ValueError: It is no shape, or not of that many bytes.
    """
    sizes = tuple(shape) if isinstance(shape, list | tuple) and len(shape) <= _MAX_DIMS else (-1,)
    are_sizes = all(type(size) is int and 0 <= size < 1 << 63 for size in sizes)
    if not are_sizes or math.prod(sizes) * itemsize != nbytes:
        raise ValueError(f"{nbytes} bytes are not of shape {shape!r:.80} with {itemsize} bytes per element")
    return sizes


def build_tensor(memory: Any, dtype: "torch.dtype", shape: object) -> "torch.Tensor":
    """A CPU tensor over `memory`, which must be writable and the tensor's own.

    Raises:
        ValueError: The shape does not fit the memory.
    """
    import torch

    nbytes = memoryview(memory).nbytes
    sizes = check_shape(shape, dtype.itemsize, nbytes)
    # frombuffer refuses empty memory.
    flat = torch.frombuffer(memory, dtype=torch.uint8) if nbytes else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).view(sizes)


def build_array(memory: Any, dtype: "np.dtype[Any]", shape: object, order: str) -> "np.ndarray[Any, Any]":
    """An array over `memory`, which must be the array's own; `order` is "C" or "F".

    Raises:
        ValueError: The shape does not fit the memory, or there is no such order.
    """
    import numpy as np

    if order not in ("C", "F"):
        raise ValueError(f"array order {order!r:.40} is neither C nor F")
    return np.ndarray(
        check_shape(shape, dtype.itemsize, len(memory)), dtype, memory, order="F" if order == "F" else "C"
    )


def place(tensor: "torch.Tensor", device: TensorDevice) -> "torch.Tensor":
    """Moves a decoded CPU tensor where this rank wants it; the sender's device is never asked."""
    if device == "cpu":
        return tensor
    if callable(device):
        placed: Any = device(tensor)
        return placed  # type: ignore[no-any-return]
    import torch

    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return tensor
    return tensor.to(torch.device(accelerator.type, torch.accelerator.current_device_index()))
