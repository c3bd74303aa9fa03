"""What a launched job is, whoever has started it."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from gather_bench.bench.results import StartedBy
from gather_core.errors import summarize

JOIN_TIMEOUT = timedelta(seconds=300)
"""For each step in which the ranks wait for each other."""


_LEAVE_WITHIN = timedelta(seconds=5)


class JobError(RuntimeError):
    """The job that this process is a rank of does not come about; the message says how to start one."""


@dataclass(frozen=True)
class Job(ABC):
    """One rank's view of a job."""

    rank: int
    world_size: int
    local_rank: int
    """Among the ranks of this host."""
    local_world_size: int

    started_by: ClassVar[StartedBy]

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which alone prints and writes."""
        return self.rank == 0

    @contextmanager
    def default_group(self) -> Iterator[None]:
        """(all ranks) Initialises torch.distributed with one thread per rank; destroys the group at the end.

        Raises:
            JobError: The ranks do not find each other.
        """
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        try:
            where = self.rendezvous()
            dist.init_process_group(self._backend(), timeout=JOIN_TIMEOUT, **where)
        except (RuntimeError, ValueError, OSError) as exc:
            text = f"rank {self.rank} has not joined the job: {summarize(exc)}".partition("\n")[0]
            raise JobError(f"{text}; {self.advice}") from exc
        try:
            yield
        finally:
            dist.destroy_process_group()
        if "store" in where:
            self._leave(where["store"])

    def _leave(self, store: Any) -> None:
        """Keeps rank 0's store alive until no rank has a use for it: else torch warns, with stacks, on the others."""
        gc.collect()  # what listened in the store ends with the group
        if not self.is_root:
            store.set(_left(self.rank), "")
            return
        with suppress(RuntimeError):  # a rank that was ended leaves no word
            store.wait([_left(rank) for rank in range(1, self.world_size)], _LEAVE_WITHIN)

    @abstractmethod
    def rendezvous(self) -> dict[str, Any]:
        """(all ranks) Returns the arguments of `init_process_group` that say where the ranks meet; raises as that."""

    @property
    @abstractmethod
    def advice(self) -> str:
        """What to do where the ranks do not find each other."""

    def end_others(self, status: int) -> None:
        """Ends the job where this rank fails alone; default: nothing, the launcher does it once this rank has ended."""
        del status

    def _backend(self) -> str:
        """NCCL beside Gloo where each local rank has a GPU of its own, which becomes the current one."""
        import torch
        import torch.distributed as dist

        needed = max(self.local_rank + 1, self.local_world_size)
        if not dist.is_nccl_available() or torch.cuda.device_count() < needed:
            return "gloo"
        torch.cuda.set_device(self.local_rank)
        return "cpu:gloo,cuda:nccl"


def _left(rank: int) -> str:
    return f"gather_bench/left/{rank}"
