"""Pickle, protocol 5: large buffers travel out-of-band and uncopied, tensors as their elements."""

import copyreg
import pickle
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gather_codecs.pickle_heads import Chunks, load
from gather_codecs.tensors import (
    arrives_with_grad,
    build_tensor,
    has_its_memory,
    is_dense,
    memory_layout,
    place,
    tensor_bytes,
)
from gather_core.codec import Codec, DecodeOptions, Frames, TensorDevice, Trust
from gather_core.errors import DecodeError, EncodeError, summarize

if TYPE_CHECKING:
    import numpy as np
    import torch

OUT_OF_BAND_FROM_NBYTES = 4096
"""Smaller buffers are cheaper inside the pickle than as a frame of their own."""
_SMALL_UP_TO_NBYTES = 1 << 14
"""Heads that leave the pickler's memo small."""
_KEEP_UP_TO_CHUNKS = 16
"""A pickler that wrote more, of 64 KiB each where there are no large bytes, is dropped: its memo may hold megabytes."""


_HAS_NO_NAME = re.compile("local object|attribute lookup|not found as|it's not the same object")
"""What pickle says of functions and classes that no module has under their name."""


class Idle(threading.local):
    """This thread's encoder, while it is not in use: all objects of a codec class share it, to hold no state."""

    encoder: "Encoder | None" = None


class PickleCodec(Codec):
    """Whatever pickle takes. A view ships its elements and not its storage; shared tensors stay shared.

    Tensors keep their strides where their elements lie without gaps (transposed, channels_last), and arrive row-major
    otherwise. Broadcast dimensions (`expand`, `numpy.broadcast_to`) are sent once and arrive as such: elements that
    shared memory share it again. Tensors arrive detached unless they are leaves, whose `requires_grad` stays; and
    without `.grad` and hooks, which torch.save drops too. Two views of one memory arrive as two copies.
    """

    name = "pickle"
    trust = Trust.CODE
    _idle: ClassVar[Idle] = Idle()

    def encode(self, obj: object) -> Frames:
        # Taken away while in use, so that an encode inside an encode gets another one; lost if this one fails.
        idle = self._idle
        encoder = idle.encoder
        idle.encoder = None
        if encoder is None or not encoder.is_current():
            encoder = self._new_encoder()
        try:
            frames = encoder.encode(obj)
        except (AttributeError, pickle.PicklingError) as exc:
            if type(self) is PickleCodec and _HAS_NO_NAME.search(str(exc)):
                text = f"codec {self.spec} cannot encode this {type(obj).__name__}: {summarize(exc)}"
                raise EncodeError(f"{text}; the codec 'auto' sends functions and classes without a name") from exc
            raise
        if encoder.starts_over():
            idle.encoder = encoder
        return frames

    def _new_encoder(self) -> "Encoder":
        return Encoder()

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if not frames:
            raise DecodeError("no frames")
        if options.tensor_device == _decoding.device:
            return load(frames)
        outer = _decoding.device
        _decoding.device = options.tensor_device
        try:
            return load(frames)
        finally:
            _decoding.device = outer


class Encoder:
    """A C pickler that is used again: a new one costs more than pickling a small object."""

    _new_pickler: ClassVar[type[pickle.Pickler]] = pickle.Pickler
    _more_reducers: ClassVar[Mapping[type, Callable[[Any], Any]]] = {}

    def __init__(self) -> None:
        self._head = Chunks()
        self._buffers: list[Any] = []
        self._is_grown = False
        self._copyreg = dict(copyreg.dispatch_table)
        self._reducers = reducers()
        self._pickler = self._make_pickler(self._head, out_of_band(self._buffers))

    def _make_pickler(self, file: Chunks, buffer_callback: Callable[[pickle.PickleBuffer], bool]) -> pickle.Pickler:
        pickler = self._new_pickler(file, 5, buffer_callback=buffer_callback)
        pickler.dispatch_table = {**self._more_reducers, **self._copyreg, **self._reducers}
        return pickler

    def is_current(self) -> bool:
        """Whether its table of reducers is up to date."""
        knows_all = len(self._reducers) == _NUM_REDUCERS or len(self._reducers) == len(reducers())
        return knows_all and self._copyreg == copyreg.dispatch_table

    def encode(self, obj: object) -> list[Any]:
        self._pickler.dump(obj)
        head = self._head
        return [*head.frames(), *self._buffers] if len(head) > 1 or self._buffers else [head[0]]

    def starts_over(self) -> bool:
        """Forgets the object; or returns False where that would cost more than another encoder.

        Growing the memo makes up a tenth of the time that a large object takes, so a grown one is good for another
        large object, but clearing it would take longer than a small one.
        """
        head = self._head
        is_large = len(head) > 1 or len(head[0]) > _SMALL_UP_TO_NBYTES
        if is_large or self._is_grown:
            if len(head) > _KEEP_UP_TO_CHUNKS or not is_large:
                return False
            self._is_grown = True
        self._pickler.clear_memo()
        head.clear()
        self._buffers.clear()
        return True


class _Decoding(threading.local):
    """Where the tensors of the object that this thread decodes go: pickle has no other way to tell its reducers."""

    device: TensorDevice = "cpu"


_decoding = _Decoding()


def of_this_python(spec: str) -> str:
    """The fingerprint of a codec whose frames may hold code, which only the same version of Python runs."""
    return f"{spec} of Python {sys.version_info.major}.{sys.version_info.minor}"


def out_of_band(frames: list[Any]) -> Callable[[pickle.PickleBuffer], bool]:
    """A pickler's buffer_callback that takes large buffers out, as flat views."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_FROM_NBYTES:
            return True
        frames.append(view)
        return False

    return keep_in_band


def reducers() -> dict[type, Callable[[Any], Any]]:
    """Reducers for exactly these types, as far as somebody has imported numpy and torch."""
    numpy_module: Any = sys.modules.get("numpy")
    torch_module: Any = sys.modules.get("torch")
    found: dict[type, Callable[[Any], Any]] = {}
    if hasattr(numpy_module, "ndarray"):
        found[numpy_module.ndarray] = _reduce_array
        found[numpy_module.str_] = _reduce_numpy_text
        found[numpy_module.bytes_] = _reduce_numpy_text
    # Another thread may be half way through importing torch.
    if hasattr(torch_module, "Tensor") and hasattr(getattr(torch_module, "nn", None), "Parameter"):
        found[torch_module.Tensor] = _reduce_tensor
        found[torch_module.nn.Parameter] = _reduce_parameter
    return found


_NUM_REDUCERS = 5


def _reduce_array(array: "np.ndarray[Any, Any]") -> Any:
    """As numpy does, but out-of-band also where numpy would copy: scattered elements and times."""
    if array.dtype.hasobject:
        return array.__reduce_ex__(5)
    if not array.flags.forc:
        return _reduce_strided(array)
    if array.dtype.kind in "mM":
        return rebuild_times, (array.view("i8"), array.dtype)
    return array.__reduce_ex__(5)


def _reduce_numpy_text(text: Any) -> Any:
    """With the zeros at its end, which numpy drops."""
    return type(text), (str.__str__(text) if isinstance(text, str) else bytes(text),)


def _reduce_strided(array: "np.ndarray[Any, Any]") -> Any:
    """In memory order where there are no gaps, else row-major; what is broadcast and cannot be written is sent once."""
    if not array.flags.writeable and 0 in array.strides:
        once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)
        return rebuild_broadcast, (array[once].copy(), array.shape)
    axes = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    in_memory_order = array.transpose(axes)
    if in_memory_order.flags.c_contiguous:
        return rebuild_transposed, (in_memory_order, axes)
    dense = array.copy()
    dense.flags.writeable = array.flags.writeable
    return _reduce_array(dense)


def _reduce_tensor(tensor: "torch.Tensor") -> Any:
    if not is_dense(tensor):
        return _reduce_as_torch_does(tensor)
    elements, strides = memory_layout(tensor)
    arguments = (tensor_bytes(elements), tensor.dtype, tuple(tensor.shape), arrives_with_grad(tensor))
    return _with_attributes(tensor, rebuild_tensor, arguments if strides is None else (*arguments, strides))


def _reduce_as_torch_does(tensor: "torch.Tensor") -> Any:
    import torch

    if tensor.layout is torch.strided and not tensor.is_nested and not has_its_memory(tensor):
        raise EncodeError("a tensor whose memory was freed or shrunk has no elements to send")
    movable = tensor if tensor.device.type in ("cpu", "meta") else tensor.cpu()
    return movable.__reduce_ex__(5)  # type: ignore[no-untyped-call]


def _reduce_parameter(parameter: "torch.nn.Parameter") -> Any:
    if not is_dense(parameter):
        return parameter.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    return _with_attributes(parameter, rebuild_parameter, (parameter.detach(), parameter.requires_grad))


def _with_attributes(tensor: "torch.Tensor", rebuild: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if not tensor.__dict__:
        return rebuild, arguments
    return rebuild, arguments, dict(tensor.__dict__), None, None, set_attributes


# What follows is named in pickles: do not move or rename.


def rebuild_broadcast(array: "np.ndarray[Any, Any]", shape: tuple[int, ...]) -> "np.ndarray[Any, Any]":
    """Undoes the sending of repeated elements once."""
    import numpy as np

    return np.broadcast_to(array, shape)


def rebuild_transposed(array: "np.ndarray[Any, Any]", axes: list[int]) -> "np.ndarray[Any, Any]":
    """Undoes `transpose(axes)`."""
    return array.transpose(sorted(range(len(axes)), key=axes.__getitem__))


def rebuild_times(counts: "np.ndarray[Any, Any]", dtype: "np.dtype[Any]") -> "np.ndarray[Any, Any]":
    """Undoes the sending of datetime64 and timedelta64, which export no buffer, as int64."""
    return counts.view(dtype)


def rebuild_tensor(
    buffer: Any,
    dtype: "torch.dtype",
    shape: tuple[int, ...],
    requires_grad: bool,
    strides: tuple[int, ...] | None = None,
) -> "torch.Tensor":
    """A tensor over the buffer, or over a copy where the buffer is read-only, placed where this rank wants it.

    Without strides it is row-major.
    """
    memory = bytearray(buffer) if memoryview(buffer).readonly else buffer
    if strides is None:
        tensor = build_tensor(memory, dtype, shape)
    else:
        tensor = build_tensor(memory, dtype, (len(memory) // dtype.itemsize,)).as_strided(shape, strides)
    tensor = place(tensor, _decoding.device)
    return tensor.requires_grad_() if requires_grad else tensor


def rebuild_parameter(data: "torch.Tensor", requires_grad: bool) -> "torch.nn.Parameter":
    """A Parameter over the tensor."""
    import torch

    return torch.nn.Parameter(data, requires_grad)


def set_attributes(tensor: "torch.Tensor", attributes: dict[str, Any]) -> None:
    """Restores what the user hung on a tensor."""
    tensor.__dict__.update(attributes)
