"""What a collective transport asks of a device: memory on both sides of it, and an order for what is enqueued there.

A device works through what the host has enqueued while the host goes on, so the order is the whole point. Within one
exchange it is: `copy` in, `launch`, `wait`, `copy` out, `record`, all inside `stream`; the host reads what was copied
out only when `is_done`. Each method is one or two calls of the device's own, so that all else can be tested without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gather_core.background import call_within, run_bounded
from gather_core.deadline import POLL_S
from gather_core.errors import GatherError, TransportError, TransportTimeoutError
from gather_core.process_group import store_of
from gather_core.transport import GroupContext

if TYPE_CHECKING:
    import torch

CONNECT_GRACE_S = 30.0
"""How much longer than ours NCCL's timeout for connecting is: where it passes, torch ends the process."""
_GIVE_UP_WITHIN_S = 1.0
_UNIQUE_ID_KEY = "0"
"""Under which torch's ProcessGroupNCCL shares the id of its first communicator (`broadcastUniqueNCCLID`)."""
_PENDING = "Operation timed out!"
"""What torch's `Work.wait` says when the time that it was given is over; a failed collective says more."""


class DeviceOps(ABC):
    """One device, as one transport uses it from one thread at a time."""

    @abstractmethod
    def connect(self, context: GroupContext, timeout_s: float, check_interrupt: Callable[[], None]) -> Any:
        """(all ranks) Returns a torch backend, such as ProcessGroupNCCL, of this transport alone.

        Raises:
            TransportError: No connection, or not in time.
        """

    @abstractmethod
    def host_memory(self, nbytes: int) -> "torch.Tensor":
        """A zeroed uint8 tensor that the device copies to and from while the host goes on; aligned to 64."""

    @abstractmethod
    def device_memory(self, nbytes: int) -> "torch.Tensor":
        """A zeroed uint8 tensor of the device; aligned to 64."""

    @abstractmethod
    def stream(self) -> AbstractContextManager[object]:
        """Within it, what is enqueued runs in order, on a stream of this transport's own: never behind the job's work.

        Raises:
            TransportError: Nothing can be enqueued now.
        """

    @abstractmethod
    def zero(self, tensor: "torch.Tensor") -> None:
        """Enqueues zeroing device memory."""

    @abstractmethod
    def copy(self, into: "torch.Tensor", source: "torch.Tensor") -> None:
        """Enqueues a copy between host and device memory."""

    @abstractmethod
    def launch(self, collective: Callable[[], Any]) -> Any:
        """Starts a collective behind what is enqueued so far, and returns its torch Work."""

    @abstractmethod
    def wait(self, work: Any, check: Callable[[], object]) -> None:
        """Holds what is enqueued later until the collective is through.

        A device that blocks the host meanwhile calls `check` at least every 0.25 s, and lets what it raises pass.
        """

    @abstractmethod
    def record(self) -> None:
        """Marks this point of the stream, for `is_done`."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the device has come past the last mark; without one there is nothing to wait for."""

    @abstractmethod
    def disconnect(self, group: Any) -> None:
        """Ends whatever is pending on the group, here and as far as possible at the peers; may block for seconds."""


class CpuOps(DeviceOps):
    """Host memory and Gloo: nothing is ever enqueued, so that order is a matter of course."""

    def connect(self, context: GroupContext, timeout_s: float, check_interrupt: Callable[[], None]) -> Any:
        from gather_transports.gloo_link import connect

        self._peers = [peer for peer in range(context.world_size) if peer != context.rank]
        return connect(context, timeout_s, check_interrupt)

    def host_memory(self, nbytes: int) -> "torch.Tensor":
        import torch

        return torch.zeros(nbytes, dtype=torch.uint8, device="cpu")

    def device_memory(self, nbytes: int) -> "torch.Tensor":
        return self.host_memory(nbytes)

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def zero(self, tensor: "torch.Tensor") -> None:
        tensor.zero_()

    def copy(self, into: "torch.Tensor", source: "torch.Tensor") -> None:
        into.copy_(source)

    def launch(self, collective: Callable[[], Any]) -> Any:
        return collective()

    def wait(self, work: Any, check: Callable[[], object]) -> None:
        while True:
            try:
                work.wait(timedelta(seconds=POLL_S))
            except RuntimeError as exc:
                if str(exc) != _PENDING:
                    raise
            else:
                return
            check()

    def record(self) -> None:
        """Nothing is under way."""

    def is_done(self) -> bool:
        return True

    def disconnect(self, group: Any) -> None:
        from gather_transports.gloo_link import sever

        sever(group, self._peers)


class CudaOps(DeviceOps):
    """The current CUDA device, and NCCL."""

    def connect(self, context: GroupContext, timeout_s: float, check_interrupt: Callable[[], None]) -> Any:
        import torch

        self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        making = _NcclGroup(context, timeout_s, self._use_once)
        try:
            return run_bounded(making.make, timeout_s, "gather-core-nccl-connect", check_interrupt)
        except BaseException as exc:
            making.give_up()
            if isinstance(exc, GatherError) or not isinstance(exc, Exception):
                raise  # what `check_interrupt` or a signal's handler raised
            failure = exc.with_traceback(None)  # whose frames hold the group
        if isinstance(failure, TimeoutError):
            raise TransportTimeoutError(f"NCCL did not connect all ranks: {failure}") from failure
        raise TransportError(f"NCCL could not connect: {failure}") from failure

    def _use_once(self, group: Any) -> None:
        """(all ranks) A first collective, as NCCL connects on first use, and blocks until all ranks have."""
        import torch

        torch.cuda.set_device(self._device)
        with self.stream():
            group.allreduce([self.device_memory(8)]).wait()
        self._stream.synchronize()

    def host_memory(self, nbytes: int) -> "torch.Tensor":
        import torch

        return torch.zeros(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def device_memory(self, nbytes: int) -> "torch.Tensor":
        import torch

        with torch.cuda.stream(self._stream):  # which alone uses it, so that no other has to wait for the zeros
            return torch.zeros(nbytes, dtype=torch.uint8, device=self._device)

    def stream(self) -> AbstractContextManager[object]:
        import torch

        if torch.cuda.is_current_stream_capturing():
            raise TransportError("a gather cannot be captured into a CUDA graph: call it outside of the capture")
        return torch.cuda.stream(self._stream)

    def zero(self, tensor: "torch.Tensor") -> None:
        tensor.zero_()

    def copy(self, into: "torch.Tensor", source: "torch.Tensor") -> None:
        into.copy_(source, non_blocking=True)

    def launch(self, collective: Callable[[], Any]) -> Any:
        return collective()  # NCCL's own stream waits for the current one

    def wait(self, work: Any, check: Callable[[], object]) -> None:
        work.wait()  # makes the current stream wait, not the host

    def record(self) -> None:
        self._event.record(self._stream)

    def is_done(self) -> bool:
        return bool(self._event.query())

    def disconnect(self, group: Any) -> None:
        group.abort()


class _NcclGroup:
    """The making of a ProcessGroupNCCL, which another thread may give up."""

    def __init__(self, context: GroupContext, timeout_s: float, use_once: Callable[[Any], None]) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._use_once = use_once
        self._made: list[Any] = []
        self._given_up = False

    def make(self) -> Any:
        """(all ranks) Returns the group, connected."""
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore

        context = self._context
        job: Any = context.process_group
        nccl: Any = dist.ProcessGroupNCCL
        # A connection of its own, as NCCL blocks in it; torch's, as NCCL's watchdog asks it outside of Python.
        store = PrefixStore(f"gather_core/nccl/{context.scope}", store_of(job).clone())
        options = nccl.Options()
        options._timeout = timedelta(seconds=self._timeout_s + CONNECT_GRACE_S)
        group = nccl(store, context.rank, context.world_size, options)
        self._made.append(group)
        self._use_once(group)
        if self._given_up:
            group.abort()
        if context.rank == 0:
            store.delete_key(_UNIQUE_ID_KEY)  # all have read it
        return group

    def give_up(self) -> None:
        """Ends the group, if there is one by now or later; waits for a second at most."""
        self._given_up = True
        if self._made:
            call_within(self._made.pop().abort, _GIVE_UP_WITHIN_S, "nccl-abort")
