"""What gather-core replaces, to be measured beside it in the same run, and to share a job with it in its tests."""

import pickle
from typing import Any

import torch
import torch.distributed as dist

_SIZE_NBYTES = 4


def torch_all_gather_object(obj: Any) -> list[Any]:
    """torch.distributed.all_gather_object on the default group."""
    objects: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(objects, obj)
    return objects


class KeptBuffer:
    """The buffer that the originals keep from call to call: it only grows, and they reduce it whole."""

    def __init__(self) -> None:
        self._buffer = torch.zeros(0, dtype=torch.uint8)

    def zeroed(self, nbytes: int) -> torch.Tensor:
        """Returns all of it, at least `nbytes`, zeroed."""
        if self._buffer.numel() < nbytes:
            self._buffer = torch.zeros(nbytes, dtype=torch.uint8)
        return self._buffer.zero_()


def seed_nbytes(obj: Any) -> int:
    """The least `max_size` with which `seed_all_gather_list` can gather the object."""
    return _SIZE_NBYTES + len(pickle.dumps(obj))


def seed_all_gather_list(obj: Any, max_size: int, group: Any = None, kept: KeptBuffer | None = None) -> list[Any]:
    """The algorithm of DPR's and fairseq's `all_gather_list`, with a CPU buffer, restated.

    A 4-byte big-endian size and the pickle go into this rank's part of a zeroed buffer, which is all-reduced; every
    byte passes through a Python list on its way in and out, as it does there, and empty parts are left out.

    Args:
        obj: Anything that pickles.
        max_size: Bytes per rank; a larger object is a ValueError before the all-reduce, here alone.
        group: A ProcessGroup; None: the default group.
        kept: The buffer of earlier calls, as the originals have it; None: one of `world_size * max_size` bytes.
    """
    payload = pickle.dumps(obj)
    filled = _SIZE_NBYTES + len(payload)
    if filled > max_size:
        raise ValueError(f"{filled} bytes do not fit in max_size={max_size}")
    world_size = dist.get_world_size(group)
    start = dist.get_rank(group) * max_size
    buffer = (kept or KeptBuffer()).zeroed(world_size * max_size)
    prefix = len(payload).to_bytes(_SIZE_NBYTES, "big")
    buffer[start : start + _SIZE_NBYTES] = torch.ByteTensor(list(prefix))
    buffer[start + _SIZE_NBYTES : start + filled] = torch.ByteTensor(list(payload))
    dist.all_reduce(buffer, group=group)
    objects = []
    for part in buffer[: world_size * max_size].split(max_size):  # type: ignore[no-untyped-call]
        size = int.from_bytes(bytes(part[:_SIZE_NBYTES].tolist()), "big")
        if size:
            objects.append(pickle.loads(bytes(part[_SIZE_NBYTES : _SIZE_NBYTES + size].tolist())))
    return objects
