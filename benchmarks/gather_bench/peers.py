"""What gather-core replaces, to be measured beside it in the same run."""

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


def seed_nbytes(obj: Any) -> int:
    """The least `max_size` with which `seed_all_gather_list` can gather the object."""
    return _SIZE_NBYTES + len(pickle.dumps(obj))


def seed_all_gather_list(obj: Any, max_size: int) -> list[Any]:
    """The algorithm of DPR's and fairseq's `all_gather_list`, with a CPU buffer, restated.

    A 4-byte big-endian size and the pickle go into this rank's part of a zeroed buffer of `world_size * max_size`
    bytes, which is all-reduced; every byte passes through a Python list on its way in and out, as it does there.
    """
    payload = pickle.dumps(obj)
    filled = _SIZE_NBYTES + len(payload)
    if filled > max_size:
        raise ValueError(f"{filled} bytes do not fit in max_size={max_size}")
    start = dist.get_rank() * max_size
    buffer = torch.zeros(dist.get_world_size() * max_size, dtype=torch.uint8)
    prefix = len(payload).to_bytes(_SIZE_NBYTES, "big")
    buffer[start : start + _SIZE_NBYTES] = torch.ByteTensor(list(prefix))
    buffer[start + _SIZE_NBYTES : start + filled] = torch.ByteTensor(list(payload))
    dist.all_reduce(buffer)
    objects = []
    for part in buffer.split(max_size):  # type: ignore[no-untyped-call]
        size = int.from_bytes(bytes(part[:_SIZE_NBYTES].tolist()), "big")
        if size:
            objects.append(pickle.loads(bytes(part[_SIZE_NBYTES : _SIZE_NBYTES + size].tolist())))
    return objects
