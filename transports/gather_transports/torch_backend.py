"""The collectives of a torch backend (ProcessGroupNCCL, ProcessGroupGloo) as `torch_collective` calls them."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gather_core.errors import TransportError

if TYPE_CHECKING:
    import torch


class TorchBackend:
    """One backend of its own; every call starts a collective and returns its Work.

    Tensors are uint8, on the backend's device. Anything that the backend reports is a RuntimeError.
    """

    def __init__(self, group: Any) -> None:
        self._group: list[Any] = [group]
        self._timeout = timedelta(minutes=10)

    def set_timeout(self, timeout: timedelta) -> None:
        """Sets how long the collectives that are started next may take."""
        self._timeout = timeout
        self._live()._set_default_timeout(timeout)  # what NCCL goes by, whatever the options of a collective say

    def take(self) -> Any:
        """Returns the backend for the last time, so that dropping it ends it; None where it is gone."""
        group, self._group = self._group, []
        return group.pop() if group else None

    def all_reduce(self, buffer: "torch.Tensor") -> Any:
        """Sums the buffers of all ranks in place, as int64: bytes stay what they are where others have zeros."""
        import torch
        from torch.distributed import AllreduceOptions

        return self._live().allreduce([buffer.view(torch.int64)], self._within(AllreduceOptions()))

    def all_gather(self, into: "torch.Tensor", source: "torch.Tensor") -> Any:
        """Puts the sources of all ranks, of one length, one behind the other."""
        from torch._C._distributed_c10d import AllgatherOptions

        return self._live()._allgather_base(into, source, self._within(AllgatherOptions()))

    def broadcast(self, tensor: "torch.Tensor", src: int) -> Any:
        """Copies the tensor of `src` into all others'."""
        from torch.distributed import BroadcastOptions

        options = self._within(BroadcastOptions())
        options.rootRank = src
        return self._live().broadcast([tensor], options)

    def all_to_all(
        self, into: "torch.Tensor", source: "torch.Tensor", received: Sequence[int], sent: Sequence[int]
    ) -> Any:
        """Sends each rank its piece of `source`; the pieces of all ranks arrive one behind the other."""
        from torch._C._distributed_c10d import AllToAllOptions

        return self._live().alltoall_base(into, source, list(received), list(sent), self._within(AllToAllOptions()))

    def _live(self) -> Any:
        group = self._group
        if not group:
            raise TransportError("the transport is not open")
        return group[0]

    def _within(self, options: Any) -> Any:
        options.timeout = self._timeout  # what Gloo goes by
        return options
