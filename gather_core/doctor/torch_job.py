"""All that the doctor asks of torch.distributed: how it was built, and the ranks that torchrun has started."""

import warnings
from datetime import timedelta
from typing import Any

from gather_core.doctor.facts import Launch, Torch
from gather_core.errors import TransportTimeoutError, format_ranks, summarize

_GLOO_TRIES = 5
"""How often Gloo waits for its timeout before it gives up connecting; torch 2.13 was seen to take so many."""
_SHORTEST_TRY_S = 0.5
_REPORT_WITHIN_S = 5.0
_FAILURE, _REPORT = "failure/", "report"


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
        self._timeout_s = timeout_s
        self._store: Any = None

    def start(self, text: str) -> None:
        """(all ranks) Tells the others a text, through the store, and initialises the default process group.

        Raises:
            TransportTimeoutError: Ranks have not come to the store in time; names them.
            RuntimeError, ValueError: The store cannot be reached, variables are missing, or ranks cannot connect; the
                message is torch's. `end` is still to be called.
        """
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        self._store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=self._timeout_s)))
        self._store.set(_key(rank), text)
        self._await_everyone()
        store = PrefixStore("default_pg", self._store)
        timeout = timedelta(seconds=max(self._timeout_s / _GLOO_TRIES, _SHORTEST_TRY_S))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)

    def _await_everyone(self) -> None:
        ranks = range(self._launch.world_size)
        try:
            self._store.wait([_key(rank) for rank in ranks], timedelta(seconds=self._timeout_s))
        except RuntimeError as exc:
            missing = [rank for rank in ranks if not self._store.check([_key(rank)])]
            if not missing:
                return
            text = f"{format_ranks(missing)} never came to the job's store: nothing heard within {self._timeout_s:g} s"
            raise TransportTimeoutError(text, missing) from exc

    def texts(self) -> dict[int, str]:
        """Returns what ranks have told with `start` so far.

        Raises:
            RuntimeError: There is no store, or it does not answer.
        """
        return self._told("")

    def fail(self, text: str) -> None:
        """Tells rank 0 why this rank could not go on; raises as `texts`."""
        self._found_store().set(_key(self._launch.rank, _FAILURE), text)

    def failures(self) -> dict[int, str]:
        """Returns what ranks have told with `fail` so far; raises as `texts`."""
        return self._told(_FAILURE)

    def report_is_out(self) -> None:
        """Tells the others on rank 0 that they need not stay; on them, waits for that, as long as it may take rank 0.

        A launcher ends rank 0 once another exits with an error, while rank 0 may still wait for that very rank.

        Raises:
            RuntimeError: There is no store, it does not answer, or rank 0 says nothing.
        """
        store = self._found_store()
        if self._launch.rank == 0:
            store.set(_key(_REPORT), "out")
        else:
            store.wait([_key(_REPORT)], timedelta(seconds=2 * self._timeout_s + _REPORT_WITHIN_S))

    def end(self) -> None:
        """Destroys the process group, if there is one; waits for nobody."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()

    def _told(self, kind: str) -> dict[int, str]:
        store = self._found_store()
        keys = {rank: _key(rank, kind) for rank in range(self._launch.world_size)}
        return {rank: store.get(key).decode() for rank, key in keys.items() if store.check([key])}

    def _found_store(self) -> Any:
        if self._store is None:
            raise RuntimeError("this rank has not reached the store of the job")
        return self._store


def _key(name: object, kind: str = "") -> str:
    return f"gather_doctor/{kind}{name}"
