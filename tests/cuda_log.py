"""Stand-ins for torch.cuda and ProcessGroupNCCL on the CPU, which write down in which order they are called."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

_JOBS = "job's stream"
_COLLECTIVES = ("allreduce", "_allgather_base", "broadcast", "alltoall_base")


class CudaLog:
    """What was called, in order, each entry with the stream that was current."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.current = _JOBS
        self.before_collective: Callable[[], object] = lambda: None
        """Called on the thread that starts one."""

    def add(self, text: str) -> None:
        self.entries.append(f"{text}, {self.current}")


class _Stream:
    def __init__(self, log: CudaLog, device: object) -> None:
        self._log = log
        self.name = f"own stream of {device}"

    def synchronize(self) -> None:
        self._log.add(f"synchronize {self.name}")


class _Event:
    """Happens a while after it is recorded."""

    def __init__(self, log: CudaLog) -> None:
        self._log = log
        self._looks = 0

    def record(self, stream: _Stream) -> None:
        self._looks = 2
        self._log.add(f"record on {stream.name}")

    def query(self) -> bool:
        self._log.add("query")
        self._looks -= 1
        return self._looks <= 0


class _Work:
    def __init__(self, log: CudaLog, work: Any) -> None:
        self._log = log
        self._work = work

    def wait(self) -> None:
        self._log.add("wait")
        self._work.wait()


class _GlooAsNccl:
    """A ProcessGroupGloo that is made and ended as a ProcessGroupNCCL is."""

    class Options:
        _timeout: Any = None

    def __init__(self, log: CudaLog, store: Any, rank: int, world_size: int, options: Any) -> None:
        import torch.distributed as dist

        self._log = log
        self._store = store
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, options._timeout)
        if rank == 0:
            store.set("0", "the id of the communicator")
        log.add(f"ProcessGroupNCCL with {options._timeout.total_seconds():.0f} s")

    def __getattr__(self, name: str) -> Any:
        if name not in _COLLECTIVES:
            raise AttributeError(name)

        def start(*arguments: Any) -> _Work:
            self._log.before_collective()
            self._log.add(name)
            return _Work(self._log, getattr(self._group, name)(*arguments))

        return start

    def _set_default_timeout(self, timeout: Any) -> None:
        self._log.add(f"timeout {timeout.total_seconds():.0f} s")

    def abort(self) -> None:
        self._log.add("abort")


class _Copies(TorchFunctionMode):
    """Writes down what is done to tensors; in the thread that entered it."""

    def __init__(self, log: CudaLog) -> None:
        super().__init__()
        self._log = log

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.copy_, torch.Tensor.zero_):
            self._log.add(f"{func.__name__} {kwargs or ''}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def cuda_on_the_cpu() -> Iterator[CudaLog]:
    """Within it, this process has a CUDA device, whose memory is the host's and whose work is done at once."""
    import torch.distributed as dist

    log, zeros = CudaLog(), torch.zeros

    @contextlib.contextmanager
    def on_stream(stream: _Stream) -> Iterator[None]:
        before, log.current = log.current, stream.name
        try:
            yield
        finally:
            log.current = before

    def zeros_on_device(nbytes: int, dtype: Any, device: object = "none", pin_memory: bool = False) -> torch.Tensor:
        log.add(f"zeros on {device}{', pinned' if pin_memory else ''}")
        return zeros(nbytes, dtype=dtype)

    class ProcessGroupNCCL(_GlooAsNccl):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(log, *arguments)

    with pytest.MonkeyPatch.context() as patch, _Copies(log):
        patch.setattr(torch.cuda, "Stream", lambda device: _Stream(log, device))
        patch.setattr(torch.cuda, "Event", lambda: _Event(log))
        patch.setattr(torch.cuda, "stream", on_stream)
        patch.setattr(torch.cuda, "set_device", lambda device: log.add(f"set_device {device}"))
        for name, value in {"is_available": True, "is_current_stream_capturing": False, "current_device": 0}.items():
            patch.setattr(torch.cuda, name, lambda value=value: value)
        patch.setattr(torch, "zeros", zeros_on_device)
        patch.setattr(dist, "is_nccl_available", lambda: True)
        patch.setattr(dist, "ProcessGroupNCCL", ProcessGroupNCCL, raising=False)
        yield log
