"""The ranks of a job that torchrun, or anything that sets the same variables, has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from gather_core.errors import summarize

_VARIABLES = ("RANK", "WORLD_SIZE")
"""What makes a process a rank of a job."""
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_HOW_TO_RUN = f"start it with torchrun, or unset {' and '.join(_VARIABLES)} to measure on local workers"
_TIMEOUT = timedelta(seconds=300)


class JobError(RuntimeError):
    """The job that this process is a rank of does not come about; the message says how to start one."""


def is_job() -> bool:
    """Whether this process was started as a rank of a job."""
    return all(name in os.environ for name in _VARIABLES)


def find_problem() -> str | None:
    """Says what the job's variables lack, on this rank alone, or returns None."""
    set_here = ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES)
    because = f"{set_here} in the environment make this a rank of a launched job"
    if missing := [name for name in _ADDRESS if not os.environ.get(name)]:
        return f"{because}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: {_HOW_TO_RUN}"
    if not all(os.environ[name].isascii() and os.environ[name].isdecimal() for name in (*_VARIABLES, "MASTER_PORT")):
        return f"{because}, but they or MASTER_PORT are no numbers: {_HOW_TO_RUN}"
    if not int(os.environ["RANK"]) < int(os.environ["WORLD_SIZE"]):
        return f"{because}, but there is no such rank: {_HOW_TO_RUN}"
    return None


def is_root() -> bool:
    """Whether this process is rank 0 of its job, which alone prints and writes."""
    return os.environ["RANK"] == "0"


@contextmanager
def default_group() -> Iterator[None]:
    """(all ranks) Initialises torch.distributed with one thread per rank; destroys the group at the end.

    Raises:
        JobError: The ranks do not find each other.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(_backend(), timeout=_TIMEOUT)
    except (RuntimeError, ValueError, OSError) as exc:
        text = f"rank {os.environ['RANK']} has not joined the job: {summarize(exc)}".partition("\n")[0]
        raise JobError(f"{text}; {_HOW_TO_RUN}") from exc
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
