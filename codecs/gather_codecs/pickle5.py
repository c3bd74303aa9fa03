"""Pickle, protocol 5: large buffers travel out-of-band and uncopied, tensors as their elements."""

import copyreg
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gather_codecs.tensors import build_tensor, is_plain, place, tensor_bytes
from gather_core.codec import Codec, DecodeOptions, Frames, TensorDevice, Trust, own
from gather_core.errors import DecodeError

if TYPE_CHECKING:
    import torch

OUT_OF_BAND_FROM_NBYTES = 4096
"""Smaller buffers are cheaper inside the pickle than as a frame of their own."""
_KEEP_UP_TO_NBYTES = 1 << 20

_decoding = threading.local()


class PickleCodec(Codec):
    """Whatever pickle takes. A view ships its elements and not its storage; shared tensors stay shared."""

    name = "pickle"
    trust = Trust.CODE

    def __init__(self) -> None:
        self._idle = threading.local()

    def encode(self, obj: object) -> Frames:
        # Taken away while in use, so that an encode inside an encode gets another one; lost if this one fails.
        encoder: _Encoder | None = self._idle.__dict__.pop("encoder", None)
        if encoder is None or not encoder.is_current():
            encoder = _Encoder()
        frames = encoder.encode(obj)
        if len(frames[0]) <= _KEEP_UP_TO_NBYTES:
            self._idle.encoder = encoder
        return frames

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if len(frames) == 1 and options.tensor_device == "cpu":
            return pickle.loads(frames[0], buffers=())
        buffers = iter([own(frame) for frame in frames[1:]])
        outer = getattr(_decoding, "device", "cpu")
        _decoding.device = options.tensor_device
        try:
            obj: object = pickle.loads(frames[0], buffers=buffers)
        finally:
            _decoding.device = outer
        _check_used_up(buffers)
        return obj


def _check_used_up(buffers: Iterator[memoryview]) -> None:
    """pickle.loads itself ignores surplus buffers."""
    if surplus := sum(1 for _ in buffers):
        raise DecodeError(f"{surplus} more frames than the pickle refers to")


class _Encoder:
    """A C pickler that is used again: a new one costs more than pickling a small object."""

    def __init__(self) -> None:
        self._knows_torch = "torch" in sys.modules
        self._num_reducers = len(copyreg.dispatch_table)
        self._head = io.BytesIO()
        self._frames: list[Any] = []
        self._pickler = pickle.Pickler(self._head, 5, buffer_callback=out_of_band(self._frames))
        self._pickler.dispatch_table = {**copyreg.dispatch_table, **tensor_reducers()}

    def is_current(self) -> bool:
        """Whether its table of reducers is up to date."""
        return self._knows_torch == ("torch" in sys.modules) and self._num_reducers == len(copyreg.dispatch_table)

    def encode(self, obj: object) -> list[Any]:
        self._pickler.dump(obj)
        frames = [self._head.getvalue(), *self._frames]
        self._pickler.clear_memo()
        self._head.seek(0)
        self._head.truncate()
        self._frames.clear()
        return frames


def out_of_band(frames: list[Any]) -> Callable[[pickle.PickleBuffer], bool]:
    """A pickler's buffer_callback that takes large buffers out, as flat views."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_FROM_NBYTES:
            return True
        frames.append(view)
        return False

    return keep_in_band


def tensor_reducers() -> dict[type, Callable[[Any], Any]]:
    """Reducers for exactly Tensor and Parameter; none while nobody has imported torch."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "nn"):
        return {}
    return {torch.Tensor: _reduce_tensor, torch.nn.Parameter: _reduce_parameter}


def _reduce_tensor(tensor: "torch.Tensor") -> Any:
    if not is_plain(tensor):
        return tensor.cpu().__reduce_ex__(5)  # type: ignore[no-untyped-call]
    buffer = pickle.PickleBuffer(tensor_bytes(tensor).data)
    requires_grad = tensor.requires_grad and tensor.is_leaf
    return rebuild_tensor, (buffer, tensor.dtype, tuple(tensor.shape), requires_grad, tensor.device.type == "cpu")


def _reduce_parameter(parameter: "torch.nn.Parameter") -> Any:
    if not is_plain(parameter):
        return parameter.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    return rebuild_parameter, (parameter.detach(), parameter.requires_grad)


def rebuild_tensor(
    buffer: Any, dtype: "torch.dtype", shape: tuple[int, ...], requires_grad: bool, was_on_cpu: bool
) -> "torch.Tensor":
    """Named in pickles: do not move or rename."""
    memory = buffer if not memoryview(buffer).readonly else bytearray(buffer)
    device: TensorDevice = getattr(_decoding, "device", "cpu")
    tensor = place(build_tensor(memory, dtype, shape), was_on_cpu, device)
    return tensor.requires_grad_() if requires_grad else tensor


def rebuild_parameter(data: "torch.Tensor", requires_grad: bool) -> "torch.nn.Parameter":
    """Named in pickles: do not move or rename."""
    import torch

    return torch.nn.Parameter(data, requires_grad)
