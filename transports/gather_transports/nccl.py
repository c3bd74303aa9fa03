"""Slots through CUDA buffers and NCCL, on a communicator of this transport alone.

docs/nccl.md says which parts have been run on GPUs, and which only on stand-ins.
"""

import os
from typing import Literal

from gather_core.spec import format_spec
from gather_core.transport import Capabilities, GroupContext
from gather_transports.device_ops import CudaOps
from gather_transports.torch_collective import CHUNK_NBYTES, TorchCollectiveTransport

_BLOCKING_WAIT = ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT")
_YES = ("1", "y", "yes", "t", "true", "on")
_ALL_REDUCE_FROM_HOSTS = 4
_ALL_REDUCE_UP_TO_NBYTES = 256 << 10


class NcclTransport(TorchCollectiveTransport):
    """CUDA buffers, staged through pinned memory; one GPU per rank: the one that is current when it opens.

    Args:
        algorithm: Of round 1. `"all_reduce"` of a zeroed buffer takes a logarithmic number of steps (NCCL's trees) and
            moves every slot twice; `"all_gather"` moves it once, in a ring of as many steps as ranks. `"auto"` is
            all_reduce from 4 hosts on, as long as all slots together have at most 256 KiB: where NCCL's own cost
            tables (src/graph/tuning.cc of 2.30) put the trees ahead; not measured.
        chunk_nbytes: Round 2 sends this many bytes of a payload at a time; each chunk renews the deadline.
    """

    name = "nccl"
    capabilities = Capabilities(locality="any", devices=frozenset({"cuda"}), death_detection="timeout")

    def __init__(
        self, *, algorithm: Literal["auto", "all_reduce", "all_gather"] = "auto", chunk_nbytes: int = CHUNK_NBYTES
    ) -> None:
        if algorithm not in ("auto", "all_reduce", "all_gather"):
            raise ValueError(f'algorithm must be "auto", "all_reduce" or "all_gather", not {algorithm!r}')
        super().__init__(CudaOps(), "all_gather", chunk_nbytes)
        self._chosen = algorithm

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        import torch
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_nccl_available():
            return "this build of torch has no NCCL"
        if not torch.cuda.is_available():
            return "there is no CUDA device"
        if any(os.environ.get(name, "0").lower() in _YES for name in _BLOCKING_WAIT):
            return f"{_BLOCKING_WAIT[0]} is set, which makes waits that neither a deadline nor Ctrl-C can end"
        if context is not None and not isinstance(context.process_group, dist.ProcessGroup):
            return "it needs a group of torch.distributed, whose store it connects over"
        return None

    @property
    def spec(self) -> str:
        options = {"algorithm": (self._chosen, "auto"), "chunk_nbytes": (self._chunk_nbytes, CHUNK_NBYTES)}
        return format_spec(self.name, {key: value for key, (value, default) in options.items() if value != default})

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        few_bytes = context.world_size * slot_nbytes <= _ALL_REDUCE_UP_TO_NBYTES
        if self._chosen != "auto":
            self._algorithm = self._chosen
        elif few_bytes and len(set(context.hosts)) >= _ALL_REDUCE_FROM_HOSTS:
            self._algorithm = "all_reduce"
        super().open(context, slot_nbytes, timeout_s=timeout_s)
