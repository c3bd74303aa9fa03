"""`gather` and `all_gather` of detectron2.utils.comm, over gather-core."""

from types import ModuleType
from typing import Any

import torch.distributed as dist

from gather_core.compat import all_gather_object, gather_object


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """(all ranks) The data of all ranks, in rank order."""
    parts: list[Any] = [None] * (dist.get_world_size(group) if dist.is_initialized() else 1)
    all_gather_object(parts, data, group=group)
    return parts


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """(all ranks) On rank `dst` of the group the data of all its ranks, in rank order; an empty list elsewhere."""
    if not dist.is_initialized():
        return [data]
    parts: list[Any] = [None] * dist.get_world_size(group) if dist.get_rank(group) == dst else []
    gather_object(data, parts or None, group=group, group_dst=dst)
    return parts


def put_into(comm: ModuleType) -> None:
    """Replaces detectron2's two functions; before anything else of detectron2 imports them."""
    comm.all_gather, comm.gather = all_gather, gather  # type: ignore[attr-defined]
