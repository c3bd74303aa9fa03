"""The seed's wire: what DPR's and fairseq's own `all_gather_list` send, so that ranks with either fit together.

A rank's part is `max_size` bytes at `rank * max_size` of a zeroed buffer: a 4-byte big-endian size, and the pickle. One
all-reduce of uint8 on the job's own group sums the buffers up. They are as long as the longest so far in this process,
because the originals keep theirs from call to call, never shrink it, and reduce it whole.
"""

import contextlib
import copyreg
import io
import pickle
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

from gather_core.errors import (
    DecodeError,
    ProtocolError,
    RemoteEncodeError,
    SettingsError,
    TransportError,
    UntrustedCodecError,
    summarize,
)
from gather_core.launched import warn_if_alone
from gather_core.process_group import find_process_group
from gather_core.settings import FORBID_CODE, code_is_forbidden

if TYPE_CHECKING:
    import torch

_SIZE_NBYTES = 4
_MOST_NBYTES = 1 << 8 * _SIZE_NBYTES
_NOTHING_SENT = "sent nothing: its object cannot be pickled or is larger than max_size, as its own error says"
_MIXED_UP = "ranks call with different max_size, are at different calls, or two of them write the same part"


def all_gather_over_seed_wire(data: Any, group: Any, max_size: int) -> list[Any]:
    """(all ranks) See `all_gather_list`."""
    max_size = _check_max_size(max_size)
    place = _find_place(group)
    try:
        part = _encode(data, max_size)
    except BaseException:  # a SystemExit of somebody's __reduce__ too
        _exchange(b"", place, max_size)  # the others are in it, or will be
        raise
    buffer = _exchange(part, place, max_size)
    objects = _decode(buffer.cpu().numpy().data, part, place, max_size)
    _keep(buffer)
    return objects


@dataclass(frozen=True)
class _Place:
    """Where this rank is."""

    group: Any
    """None: this process is alone."""
    rank: int
    world_size: int


def _find_place(group: object) -> _Place:
    found = find_process_group(group)
    if found is None:
        warn_if_alone()
        return _Place(None, 0, 1)
    return _Place(found, found.rank(), found.size())


def _check_max_size(max_size: Any) -> int:
    try:
        checked = index(max_size)
    except TypeError:
        checked = -1
    if not _SIZE_NBYTES < checked < _MOST_NBYTES:
        raise SettingsError(
            f"max_size must be an int from {_SIZE_NBYTES + 1} to {_MOST_NBYTES - 1}, in bytes, not {max_size!r}"
        )
    return checked


def _encode(data: Any, max_size: int) -> memoryview:
    """What this rank writes into its part: size and pickle."""
    if code_is_forbidden():
        raise UntrustedCodecError(
            f"the seed's wire is pickle, which can execute code while it decodes, and {FORBID_CODE} forbids that; set "
            "GATHER_WIRE=native and GATHER_CODEC=msgpack on all ranks"
        )
    stream = io.BytesIO(bytes(_SIZE_NBYTES))
    stream.seek(_SIZE_NBYTES)
    pickler: Any = pickle.Pickler(stream)
    if _cuda_is_initialized():
        pickler.dispatch_table = ChainMap(_reducers_to_cpu(), copyreg.dispatch_table)
    pickler.dump(data)
    part = stream.getbuffer()
    if len(part) > max_size:
        raise SettingsError(
            f"max_size={max_size} is too small: the object takes {len(part)} bytes with its size prefix; pass at least "
            "that on all ranks, or set GATHER_WIRE=native, which has no such limit"
        )
    part[:_SIZE_NBYTES] = (len(part) - _SIZE_NBYTES).to_bytes(_SIZE_NBYTES, "big")
    return part


def _cuda_is_initialized() -> bool:
    """Whether an object may hold CUDA tensors; does not import torch for a process that never did."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _reducers_to_cpu() -> dict[Any, Callable[[Any], Any]]:
    """For a pickler's `dispatch_table`: CUDA tensors are pickled as CPU tensors, else as they always are."""
    import torch

    return {torch.Tensor: _reduce_to_cpu, torch.nn.Parameter: _reduce_to_cpu}


def _reduce_to_cpu(tensor: Any) -> Any:
    return (_to_cpu(tensor) if tensor.is_cuda else tensor).__reduce_ex__(pickle.DEFAULT_PROTOCOL)


def _to_cpu(tensor: "torch.Tensor") -> "torch.Tensor":
    """A copy of the same type."""
    import torch

    copied = tensor.detach().cpu()
    if type(tensor) is torch.nn.Parameter:
        return torch.nn.Parameter(copied, tensor.requires_grad)
    return copied.requires_grad_(tensor.requires_grad)


def _exchange(part: bytes | memoryview, place: _Place, max_size: int) -> "torch.Tensor":
    """(all ranks) Returns the sum of all ranks' buffers."""
    import torch

    buffer = _zeroed(_buffer_nbytes(place.world_size * max_size), _device(place))
    if part:
        start = place.rank * max_size
        buffer[start : start + len(part)] = torch.frombuffer(part, dtype=torch.uint8)
    if place.group is not None:
        _all_reduce(buffer, place)
    return buffer


_kept: "list[torch.Tensor]" = []
"""The last call's buffer, unless another call uses it: fresh pages cost more than zeroing used ones does."""


def _zeroed(nbytes: int, device: str) -> "torch.Tensor":
    import torch

    with contextlib.suppress(IndexError):
        buffer = _kept.pop()  # atomic, so that no two threads get it
        if buffer.device.type == device and buffer.numel() == nbytes:
            return buffer.zero_()
    with torch.inference_mode(False):  # else it could not be written to outside of the caller's
        return torch.zeros(nbytes, dtype=torch.uint8, device=device)


def _keep(buffer: "torch.Tensor") -> None:
    """Keeps a buffer that nothing writes to any more, as something may after a failed all-reduce."""
    if buffer.device.type == "cpu":  # torch itself keeps memory of other devices
        _kept[:] = [buffer]


def _device(place: _Place) -> str:
    """Host memory where the group reduces that, as torch's object collectives choose; else the current CUDA device."""
    kinds = [device.type for device in place.group._device_types] if place.group is not None else []
    return "cpu" if "cpu" in kinds or not kinds else str(kinds[0])


def _all_reduce(buffer: "torch.Tensor", place: _Place) -> None:
    try:
        place.group.allreduce([buffer]).wait()
    except RuntimeError as exc:
        raise TransportError(
            f"rank {place.rank} of {place.world_size}: the all-reduce of {buffer.numel()} bytes on the job's own group "
            f"failed: {summarize(exc)}; a rank did not come, died, or has another history of max_size"
        ) from exc


_longest_nbytes = 0
_longest_lock = threading.Lock()


def _buffer_nbytes(nbytes: int) -> int:
    """The length of the longest buffer that this process has needed so far, this one included."""
    global _longest_nbytes
    with _longest_lock:
        _longest_nbytes = max(_longest_nbytes, nbytes)
        return _longest_nbytes


def _decode(buffer: memoryview, own: memoryview, place: _Place, max_size: int) -> list[Any]:
    start = place.rank * max_size
    if buffer[start : start + len(own)] != own:
        raise ProtocolError(f"another rank wrote into the part of rank {place.rank}: {_MIXED_UP}")
    if _any(buffer[place.world_size * max_size :]):
        raise ProtocolError(f"a rank wrote beyond {place.world_size} parts of max_size={max_size} bytes: {_MIXED_UP}")
    parts = [buffer[rank * max_size : (rank + 1) * max_size] for rank in range(place.world_size)]
    payloads = [_payload(rank, part) for rank, part in enumerate(parts)]
    _check_presence(payloads)
    return [_unpickle(rank, payload) for rank, payload in enumerate(payloads)]


def _any(view: memoryview) -> bool:
    """Whether any byte is not zero."""
    import numpy as np

    return bool(np.frombuffer(view, np.uint8).any()) if view else False


def _payload(rank: int, part: memoryview) -> memoryview:
    size = int.from_bytes(part[:_SIZE_NBYTES], "big")
    end = _SIZE_NBYTES + size
    if end > len(part):
        raise ProtocolError(f"the part of rank {rank} claims {size} bytes after its prefix of {len(part)}: {_MIXED_UP}")
    if _any(part[end:]):
        raise ProtocolError(f"the part of rank {rank} goes on behind its {size} bytes: {_MIXED_UP}")
    return part[_SIZE_NBYTES:end]


def _check_presence(payloads: Sequence[memoryview]) -> None:
    """No rank is ever left out of a result."""
    failures = {rank: _NOTHING_SENT for rank, payload in enumerate(payloads) if not payload}
    if failures:
        raise RemoteEncodeError(failures)


def _unpickle(rank: int, payload: memoryview) -> Any:
    if payload[-1] != ord(pickle.STOP):
        raise ProtocolError(f"the {len(payload)} bytes of rank {rank} do not end as a pickle does: {_MIXED_UP}")
    try:
        return pickle.loads(payload)
    except Exception as exc:
        raise DecodeError(f"the {len(payload)} bytes of rank {rank} do not unpickle: {summarize(exc)}") from exc
