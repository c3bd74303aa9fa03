"""All that the doctor asks of torch.distributed: how it was built, and the ranks that torchrun has started."""

import time
import warnings
from datetime import timedelta
from typing import Any

from gather_core.deadline import Deadline
from gather_core.doctor.facts import Launch, Torch
from gather_core.errors import summarize

_LATE_TEXTS_WITHIN_S = 2.0
_POLL_S = 0.05


def look_at_torch() -> Torch:
    """Imports torch; creates no context on a device."""
    try:
        import torch
        import torch.distributed as dist
    except Exception as exc:  # a library that it needs can be missing, or not fit
        return Torch(None, summarize(exc))
    backends: list[str] = []
    if dist.is_available():
        built_in = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available, "mpi": dist.is_mpi_available}
        backends = [name for name, is_there in built_in.items() if is_there()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is too old: no device, then
        num_gpus = torch.cuda.device_count()
    nccl = ".".join(map(str, _nccl_version())) if "nccl" in backends else None
    return Torch(str(torch.__version__), "", torch.version.cuda, nccl, tuple(backends), num_gpus)


def _nccl_version() -> tuple[int, ...]:
    import torch

    nccl: Any = torch.cuda.nccl
    found: tuple[int, ...] = nccl.version()
    return found


class TorchJob:
    """The ranks that torchrun has started, and what each of them has put into their store."""

    def __init__(self, launch: Launch, timeout_s: float) -> None:
        """Meets nobody yet."""
        self._launch = launch
        self._timeout = timedelta(seconds=timeout_s)
        self._store: Any = None

    def start(self, text: str) -> None:
        """(all ranks) Tells the others a text, through the store, and initialises the default process group.

        Raises:
            RuntimeError, ValueError: The store cannot be reached, variables are missing, or ranks cannot connect; the
                message is torch's. `end` is still to be called.
        """
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        self._store, rank, world_size = next(rendezvous("env://", timeout=self._timeout))
        self._store.set_timeout(self._timeout)
        self._store.set(_key(rank), text)
        store = PrefixStore("default_pg", self._store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=self._timeout)

    def texts(self) -> dict[int, str]:
        """Returns what each rank has told, without those that came as far as that neither before nor within 2 s."""
        deadline = Deadline(_LATE_TEXTS_WITHIN_S)
        missing = set(range(self._launch.world_size)) if self._store is not None else set()
        told: dict[int, str] = {}
        while missing and not deadline.passed():
            for rank in [rank for rank in missing if self._store.check([_key(rank)])]:
                told[rank] = self._store.get(_key(rank)).decode()
                missing.remove(rank)
            if missing:
                time.sleep(_POLL_S)
        return told

    def end(self) -> None:
        """Destroys the process group, if there is one; waits for nobody."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def _key(rank: int) -> str:
    return f"gather_doctor/{rank}"
