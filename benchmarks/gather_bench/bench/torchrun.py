"""The ranks of a job that torchrun, or anything that sets the same variables, has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

_VARIABLES = ("RANK", "WORLD_SIZE")
_TIMEOUT = timedelta(seconds=300)


def is_job() -> bool:
    """Whether this process was started as a rank of a job."""
    return all(name in os.environ for name in _VARIABLES)


def is_root() -> bool:
    """Whether this process is rank 0 of its job, which alone prints and writes."""
    return os.environ["RANK"] == "0"


@contextmanager
def default_group() -> Iterator[None]:
    """(all ranks) Initialises torch.distributed with one thread per rank; destroys the group at the end."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(_backend(), timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _backend() -> str:
    """NCCL beside Gloo where each local rank has a GPU of its own, which becomes the current one."""
    import torch
    import torch.distributed as dist

    local_rank, local_world_size = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if not dist.is_nccl_available() or torch.cuda.device_count() < max(local_rank + 1, local_world_size):
        return "gloo"
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"
