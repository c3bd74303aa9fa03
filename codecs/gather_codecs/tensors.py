"""Torch tensors and numpy arrays as bytes and back, for all codecs: elements only, never the storage behind a view."""

import functools
import sys
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

from gather_core.codec import TensorDevice
from gather_core.errors import DecodeError, EncodeError, summarize

if TYPE_CHECKING:
    import numpy as np
    import torch

_MAX_DIMS = 64
"""As many as numpy allows; torch allows more."""
_MAX_DIMS_NUMPY_1 = 32
_MAX_DIMS_OF_ONE_MEMORY_FORMAT = 3
"""With more there is channels_last."""
_MAX_SIZE = (1 << 63) - 1
_SHAPE_TYPES = (list, tuple)
_NUMPY_LACKS = (
    *("bfloat16", "complex32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", "float4_e2m1fn_x2"),
)
_DTYPE_NAMES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *_NUMPY_LACKS,
)


@functools.cache
def _dtypes() -> "dict[str, torch.dtype]":
    """Of the dtypes that travel as raw elements, those that the installed torch has."""
    import torch

    return {name: getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)}


@functools.cache
def _names() -> "dict[torch.dtype, str]":
    return {dtype: name for name, dtype in _dtypes().items()}


@functools.cache
def _numpy_dtypes() -> "dict[torch.dtype, np.dtype[Any]]":
    """Those of torch's dtypes that numpy has too."""
    import numpy as np

    return {dtype: np.dtype(name) for name, dtype in _dtypes().items() if name not in _NUMPY_LACKS}


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
    """Whether the elements, dtype and shape are the whole value: not sparse, quantized, nested, on `meta`, or freed.

    Also of no more dimensions than decoding takes.
    """
    import torch

    return (
        tensor.dtype in _names()
        and tensor.layout is torch.strided
        and tensor.ndim <= _MAX_DIMS
        and not tensor.is_nested
        and not tensor.is_meta
        and has_its_memory(tensor)
    )


def has_its_memory(tensor: "torch.Tensor") -> bool:
    """Whether all elements of a strided tensor lie in its storage; FSDP, for one, frees storages under tensors."""
    num_elements = tensor.numel()
    if num_elements == 0:
        return True
    if not tensor.is_contiguous():
        num_elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = tensor.storage_offset() + num_elements
    return tensor.untyped_storage().nbytes() >= end * tensor.itemsize


def is_plain_tensor(obj: Any) -> bool:
    """Whether this is a dense tensor of no subclass and without attributes that the user hung on it."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and type(obj) is torch.Tensor and is_dense(obj) and not obj.__dict__


def has_grad(tensor: "torch.Tensor") -> bool:
    """Whether this is a leaf with a gradient, which would be lost."""
    # Asking a tensor that is no leaf for its gradient is a warning.
    return tensor.is_leaf and tensor.grad is not None


def memory_order(array: "np.ndarray[Any, Any]") -> str:
    """The order of the elements that `array_bytes` returns: "F" where only that is contiguous, else "C"."""
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def arrives_with_grad(tensor: "torch.Tensor") -> bool:
    """Whether `requires_grad` travels: it does on leaves, what was computed arrives detached."""
    return tensor.requires_grad and tensor.is_leaf


def tensor_bytes(tensor: "torch.Tensor") -> PickleBuffer:
    """The elements of a dense tensor in row-major order; those of a contiguous CPU tensor are not copied.

    Raises:
        EncodeError: It stands for another, as tensors inside `torch.func.functionalize` do.
    """
    if not tensor.is_contiguous():
        tensor = tensor.detach().contiguous()
    if not tensor.is_cpu:
        tensor = tensor.detach().cpu()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().resolve_conj().resolve_neg()
    nbytes = tensor.nbytes
    if not nbytes:
        return PickleBuffer(bytearray())
    address = tensor.data_ptr()
    if not address:
        raise EncodeError("a tensor that has no memory of its own has no elements to send")
    # Not by numpy, after which a storage can never be resized again: FSDP does that.
    memory = _bytes_type(nbytes.bit_length()).from_address(address)
    memory.tensor = tensor  # whose memory it is, while anybody has a view of it
    return PickleBuffer(memoryview(memory)[:nbytes])


@functools.cache
def _bytes_type(length_bits: int) -> Any:
    """Of memory that is longer than any length of so many bits: types live long, so there are few of them."""
    import ctypes

    return ctypes.c_ubyte * (1 << length_bits)


def memory_layout(tensor: "torch.Tensor") -> "tuple[torch.Tensor, tuple[int, ...] | None]":
    """The elements of a dense tensor that have to travel, and the strides that make the tensor of them again.

    A layout without gaps (transposed, channels_last) is seen as it lies in memory and not copied, and the elements of
    broadcast dimensions (stride 0) are there once. Without strides, it is the tensor itself and arrives row-major:
    that is where elements lie scattered or overlap.
    """
    # Of these, row-major strides and those of channels_last may both be right, but operators choose by them.
    is_ambiguous = tensor.ndim > _MAX_DIMS_OF_ONE_MEMORY_FORMAT and 1 in tensor.shape
    if tensor.is_contiguous() and not is_ambiguous:
        return tensor, None
    strides = tensor.stride()
    num_elements = _num_elements_without_gaps(tensor.shape, strides)
    if num_elements is not None:
        return tensor.detach().as_strided((num_elements,), (1,)), strides
    if 0 not in strides:
        return tensor, None
    once = tensor.detach()[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)].contiguous()
    return once, tuple(0 if stride == 0 else size for stride, size in zip(strides, once.stride(), strict=True))


def dense_layout(tensor: "torch.Tensor") -> "tuple[torch.Tensor, tuple[int, ...] | None]":
    """As `memory_layout`, for bytes that nobody trusts: no tensor of them is larger than they are.

    Elements of broadcast dimensions travel as often as they are there.
    """
    elements, strides = memory_layout(tensor)
    return (tensor, None) if strides is None or elements.numel() != tensor.numel() else (elements, strides)


def _num_elements_without_gaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """How many elements lie side by side in memory, each reached by one index of the dimensions that are not broadcast.

    None where there are gaps or overlaps, or nothing at all.
    """
    num_elements = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 0 or (size > 1 and stride not in (0, num_elements)):
            return None
        if stride:
            num_elements *= size
    return num_elements


def array_bytes(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The elements as they lie in memory, row-major if they lie scattered: a uint8 array of shape (nbytes,)."""
    import numpy as np

    if array.dtype.names is not None and not array.flags.forc:
        # Copying records field by field would leave what is between the fields as the new memory has it.
        array = array.view(f"V{array.dtype.itemsize}")
    dense = array.T if array.flags.f_contiguous else np.ascontiguousarray(array)
    return dense.reshape(-1).view(np.uint8)


def check_shape(shape: object, itemsize: int, nbytes: int) -> tuple[int, ...]:
    """The shape of an array of `nbytes` bytes as a tuple, checked before anything of that shape is made.

    Raises:
        ValueError: It is no shape, or not of that many bytes.
    """
    if isinstance(shape, _SHAPE_TYPES) and len(shape) <= _MAX_DIMS:
        shape_nbytes = itemsize
        for size in shape:
            if type(size) is not int or not 0 <= size <= _MAX_SIZE:
                break
            shape_nbytes *= size
        else:
            if shape_nbytes == nbytes:
                return tuple(shape)
    raise ValueError(f"{nbytes} bytes are not of shape {shape!r:.80} with {itemsize} bytes per element")


def build_tensor(memory: Any, dtype: "torch.dtype", shape: object) -> "torch.Tensor":
    """A CPU tensor over `memory`: bytes that must be writable and the tensor's own.

    Raises:
        ValueError: The shape does not fit the memory.
    """
    import numpy as np
    import torch

    nbytes = len(memory)
    sizes = check_shape(shape, dtype.itemsize, nbytes)
    numpy_dtype = _numpy_dtypes().get(dtype)
    if numpy_dtype is not None and nbytes and len(sizes) <= _MAX_DIMS_NUMPY_1:
        # In half of the time that torch takes for the flat tensor and its shape.
        tensor = torch.from_numpy(np.ndarray(sizes, numpy_dtype, memory))
        if type(tensor) is torch.Tensor:  # in FakeTensorMode it is one without elements
            return tensor
    if nbytes:
        flat = torch.frombuffer(memory, dtype=dtype)
    else:
        # frombuffer refuses empty memory. Without the device, this would land on the user's default device.
        flat = torch.empty(0, dtype=torch.uint8, device="cpu").view(dtype)
    # Given a tuple, this is faster than the methods view and reshape.
    return flat if len(sizes) == 1 else torch.reshape(flat, sizes)


def build_dense_tensor(memory: Any, dtype: "torch.dtype", shape: object, strides: object) -> "torch.Tensor":
    """As `build_tensor`, with the elements in the order of `strides`, or row-major where they are None.

    Raises:
        ValueError: Shape or strides do not fit the memory, or the elements lie with gaps or overlaps.
    """
    if strides is None:
        return build_tensor(memory, dtype, shape)
    nbytes = len(memory)
    sizes = check_shape(shape, dtype.itemsize, nbytes)
    num_elements = nbytes // dtype.itemsize
    if type(strides) is not list or len(strides) != len(sizes) or any(type(stride) is not int for stride in strides):
        raise ValueError(f"strides {strides!r:.80} are not those of shape {shape!r:.80}")
    # No elements are reached twice, as they are as many as the shape has; a stride of a single element is never used.
    if min(strides, default=0) < 0 or _num_elements_without_gaps(sizes, tuple(strides)) != num_elements:
        raise ValueError(f"strides {strides!r:.80} leave gaps or overlap in shape {shape!r:.80}")
    return build_tensor(memory, dtype, (num_elements,)).as_strided(sizes, strides)


def build_array(memory: Any, dtype: "np.dtype[Any]", shape: object, order: str) -> "np.ndarray[Any, Any]":
    """An array over `memory`, which must be the array's own; `order` is "C" or "F".

    Raises:
        ValueError: The shape does not fit the memory, there is no such order, or no array has such a dtype.
    """
    import numpy as np

    if dtype.subdtype is not None:
        raise ValueError(f"arrays of {dtype!s:.80} are arrays of its items, with more dimensions")
    if order not in ("C", "F"):
        raise ValueError(f"array order {order!r:.40} is neither C nor F")
    return np.ndarray(
        check_shape(shape, dtype.itemsize, len(memory)), dtype, memory, order="F" if order == "F" else "C"
    )


def place(tensor: "torch.Tensor", device: TensorDevice) -> "torch.Tensor":
    """Moves a decoded CPU tensor where this rank wants it; the sender's device is never asked.

    Raises:
        DecodeError: The function that says where failed, or the move to the current device did.
    """
    if device == "cpu":
        return tensor
    try:
        return device(tensor) if callable(device) else _to_current(tensor)  # type: ignore[return-value]
    except Exception as exc:
        raise DecodeError(f"tensor_device failed: {summarize(exc)}") from exc


def _to_current(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return tensor
    return tensor.to(torch.device(accelerator.type, torch.accelerator.current_device_index()))
