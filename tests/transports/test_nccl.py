"""The `nccl` transport: on GPUs where there are some, and its calls to CUDA on stand-ins everywhere."""

import contextlib
from typing import Any

import pytest
import torch

from gather_core import Gatherer
from gather_core.registry import get_transport
from gather_core.transport import GroupContext
from gather_transports.nccl import NcclTransport
from gather_transports.single import SingleTransport
from rank_pool import RankPool

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")


def objects_of(rank: int) -> list[Any]:
    """Small ones, ones that need a second round on every rank, and one that needs it on rank 0 alone."""
    return [{"rank": rank}, b"x" * (100_000 + rank), bytes(300_000 if rank == 0 else 10), list(range(rank, 9))]


def gather_all_kinds(rank: int, world_size: int, spec: str) -> list[str]:
    """Every verb of the transport, below a Gatherer; returns what came out wrong."""
    large = "large" * 10_000
    with Gatherer(transport=spec, timeout_s=60) as gatherer:
        results = {
            "all_gather": [gatherer.all_gather(obj) for obj in objects_of(rank)],
            "gather": gatherer.gather(large, dst=world_size - 1),
            "broadcast": gatherer.broadcast(large if rank == 0 else None),
        }
    expected = {
        "all_gather": [list(column) for column in zip(*map(objects_of, range(world_size)), strict=True)],
        "gather": [large] * world_size if rank == world_size - 1 else None,
        "broadcast": large,
    }
    return [operation for operation, result in results.items() if result != expected[operation]]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("algorithm", ["all_reduce", "all_gather"])
def test_one_gpu(pool: RankPool, algorithm: str) -> None:
    spec = f'nccl:algorithm="{algorithm}",chunk_nbytes=50000'
    assert pool.values(1, gather_all_kinds, spec, timeout_s=120) == [[]]


@pytest.mark.gpu
@needs_two_gpus
@pytest.mark.parametrize("algorithm", ["all_reduce", "all_gather"])
def test_two_gpus(pool: RankPool, algorithm: str) -> None:
    def body(rank: int, world_size: int, spec: str) -> list[str]:
        torch.cuda.set_device(rank)
        return gather_all_kinds(rank, world_size, spec)

    spec = f'nccl:algorithm="{algorithm}",chunk_nbytes=50000'
    assert pool.values(2, body, spec, timeout_s=120) == [[], []]


@pytest.mark.gpu
@needs_gpu
def test_a_gather_does_not_wait_for_what_the_job_has_enqueued(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> bool:
        cuda: Any = torch.cuda
        with Gatherer(transport="nccl", timeout_s=60) as gatherer:
            gatherer.all_gather(0)
            done = cuda.Event()
            cuda._sleep(4_000_000_000)  # ticks of the device: seconds
            done.record()
            gatherer.all_gather(1)
            was_busy = not done.query()
            cuda.synchronize()
            return was_busy

    assert pool.values(1, body, timeout_s=120) == [True]


class StandIn:
    """Instead of a stream, an event and a device: everything has happened at once."""

    def __init__(self, *arguments: object) -> None:
        self.recorded = False

    def record(self, stream: object) -> None:
        self.recorded = True

    def query(self) -> bool:
        return self.recorded

    def synchronize(self) -> None:
        pass


class GlooAsNccl:
    """Instead of ProcessGroupNCCL, with its constructor."""

    class Options:
        _timeout: Any = None

    def __new__(cls, store: Any, rank: int, world_size: int, options: Any) -> Any:
        import torch.distributed as dist

        return dist.ProcessGroupGloo(store, rank, world_size, options._timeout)


@contextlib.contextmanager
def cuda_on_the_cpu() -> Any:
    """Has the calls of CudaOps to torch.cuda do nothing, and its memory be host memory."""
    import torch.distributed as dist

    zeros = torch.zeros
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Stream", "Event"):
            patch.setattr(torch.cuda, name, StandIn)
        for name, value in {"is_available": True, "is_current_stream_capturing": False, "current_device": 0}.items():
            patch.setattr(torch.cuda, name, lambda value=value: value)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch, "zeros", lambda nbytes, dtype, device, pin_memory=False: zeros(nbytes, dtype=dtype))
        patch.setattr(dist, "is_nccl_available", lambda: True)
        patch.setattr(dist, "ProcessGroupNCCL", GlooAsNccl, raising=False)
        yield


@pytest.mark.parametrize("spec", ["nccl", 'nccl:algorithm="all_reduce",chunk_nbytes=50000'])
def test_its_calls_to_cuda_are_made_in_a_way_that_works(pool: RankPool, spec: str) -> None:
    def body(rank: int, world_size: int, spec: str) -> list[str]:
        with cuda_on_the_cpu():
            return gather_all_kinds(rank, world_size, spec)

    assert pool.values(2, body, spec) == [[], []]


def test_capturing_a_graph_is_refused_on_every_rank(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        with cuda_on_the_cpu(), Gatherer(transport="nccl", timeout_s=20) as gatherer:
            torch.cuda.is_current_stream_capturing = lambda: rank == 0
            with pytest.raises(Exception, match="captured") as raised:
                gatherer.all_gather(rank)
            return type(raised.value).__name__

    assert pool.values(2, body) == ["TransportError", "AbortedError"]


def test_why_it_is_not_available_is_said() -> None:
    context = SingleTransport.join(None)
    reason = NcclTransport.unavailable(context)
    assert reason in {
        "this build of torch has no NCCL",
        "there is no CUDA device",
        "it needs a group of torch.distributed, whose store it connects over",
    }


@pytest.mark.parametrize(
    ("world_size", "num_hosts", "slot_nbytes", "expected"),
    [(8, 1, 1024, "all_gather"), (8, 4, 16384, "all_reduce"), (8, 4, 65536, "all_gather"), (8, 3, 1024, "all_gather")],
)
def test_auto_reduces_few_bytes_over_many_hosts(
    monkeypatch: pytest.MonkeyPatch, world_size: int, num_hosts: int, slot_nbytes: int, expected: str
) -> None:
    transport = NcclTransport()
    monkeypatch.setattr(type(transport).__base__, "open", lambda *arguments, **options: None)
    context = SingleTransport.join(None)
    hosts = tuple(rank * num_hosts // world_size for rank in range(world_size))
    place = GroupContext(0, world_size, context.store, context.bell, tuple(range(world_size)), hosts=hosts)
    transport.open(place, slot_nbytes, timeout_s=1)
    assert transport._algorithm == expected


def test_its_spec_names_what_differs_from_the_default() -> None:
    for spec in ("nccl", 'nccl:algorithm="all_gather"', "nccl:chunk_nbytes=64"):
        assert get_transport(spec).spec == spec
