"""Torch tensors as bytes and back, for all codecs: elements only, never the storage behind a view."""

import math
from typing import TYPE_CHECKING, Any

from gather_core.codec import TensorDevice

if TYPE_CHECKING:
    import numpy as np
    import torch

_DTYPE_NAMES = frozenset(
    {
        "bool",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex32",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    }
)


def dtype_name(dtype: "torch.dtype") -> str | None:
    """The name of a dtype that travels as raw elements, or None."""
    name = str(dtype).removeprefix("torch.")
    return name if name in _DTYPE_NAMES else None


def dtype_of(name: object) -> "torch.dtype":
    """The dtype of that name.

    Raises:
        ValueError: No dtype that travels has this name, or the installed torch lacks it.
    """
    import torch

    dtype = getattr(torch, name, None) if isinstance(name, str) and name in _DTYPE_NAMES else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown tensor dtype {name!r}")
    return dtype


def is_plain(tensor: "torch.Tensor") -> bool:
    """Whether a tensor is its elements and nothing more: dense, no subclass, no attributes, not on `meta`."""
    import torch

    return (
        tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
        and tensor.device.type != "meta"
        and dtype_name(tensor.dtype) is not None
        and not tensor.__dict__
    )


def tensor_bytes(tensor: "torch.Tensor") -> "np.ndarray[Any, Any]":
    """The elements in row-major order, as a uint8 array of shape (nbytes,); a contiguous CPU tensor is not copied."""
    import torch

    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # A tensor of one element counts as contiguous whatever its stride is; as_strided makes it 1 again.
    elements: np.ndarray[Any, Any] = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
    return elements


def build_tensor(buffer: Any, dtype: "torch.dtype", shape: tuple[int, ...]) -> "torch.Tensor":
    """A CPU tensor over `buffer`, which must be writable and owned.

    Raises:
        ValueError: The shape does not fit the buffer.
    """
    import torch

    nbytes = memoryview(buffer).nbytes
    if any(type(size) is not int or size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != nbytes:
        raise ValueError(f"{nbytes} bytes are no {dtype} tensor of shape {shape}")
    if nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(shape)


def place(tensor: "torch.Tensor", was_on_cpu: bool, device: TensorDevice) -> "torch.Tensor":
    """Moves a decoded tensor where this rank wants it; never to the sender's device number."""
    if callable(device):
        placed: Any = device(tensor)
        return placed  # type: ignore[no-any-return]
    if device == "current" and not was_on_cpu:
        import torch

        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            return tensor.to(torch.device(accelerator.type, torch.accelerator.current_device_index()))
    return tensor
