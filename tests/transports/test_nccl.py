"""The `nccl` transport: on GPUs where there are some, and its calls to CUDA on stand-ins everywhere."""

import threading
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from cuda_log import cuda_on_the_cpu
from deletions import without
from gather_core import Capabilities, Gatherer, TransportTimeoutError
from gather_core.registry import get_transport
from gather_core.transport import GroupContext
from gather_transports import device_ops
from gather_transports.nccl import NcclTransport
from gather_transports.single import SingleTransport
from gather_transports.torch_collective import TorchCollectiveTransport
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


@pytest.mark.parametrize("spec", ["nccl", 'nccl:algorithm="all_reduce",chunk_nbytes=50000'])
def test_over_stand_ins_for_cuda_and_nccl_every_operation_is_exact(pool: RankPool, spec: str) -> None:
    def body(rank: int, world_size: int, spec: str) -> list[str]:
        with cuda_on_the_cpu():
            return gather_all_kinds(rank, world_size, spec)

    assert pool.values(2, body, spec) == [[], []]


class Job:
    """Instead of the job's process group."""

    def __init__(self) -> None:
        self.store = HashStore()

    def get_group_store(self) -> HashStore:
        return self.store


def log_of_one_rank(module: ModuleType, *, late_peer: bool = False) -> list[str]:
    """What is called: to connect, for one exchange and to close; or to connect, where it is given up, and is late."""
    job, given_up = Job(), threading.Event()
    local = SingleTransport.join(None)
    context = replace(local, process_group=job, scope="test", hosts=(0,))

    class OnDevice(TorchCollectiveTransport):
        name, capabilities = "on_device", Capabilities(locality="any")

    with cuda_on_the_cpu() as log:
        transport = OnDevice(module.CudaOps(), "all_reduce", 64)
        if late_peer:
            log.before_collective = lambda: given_up.wait(10)
            with pytest.raises(TransportTimeoutError, match="did not connect"):
                transport.open(context, 1024, timeout_s=0.2)
            log.entries.append("given up")
            given_up.set()
            join_threads("gather-core-nccl-connect")
        else:
            transport.open(context, 1024, timeout_s=20)
            transport.slot(3)[:] = b"abc"
            assert bytes(transport.all_gather_slots(3, timeout_s=20)[0][:3]) == b"abc"
        transport.close()
    keys = [key for key in ("0",) if job.store.check([f"gather_core/nccl/test/{key}"])]
    return [*log.entries, f"keys left: {keys}"]


def join_threads(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(10)


OWN, JOBS = "own stream of cuda:0", "job's stream"
CONNECTING = [
    f"ProcessGroupNCCL with 50 s, {JOBS}",
    f"set_device cuda:0, {JOBS}",
    f"zeros on cuda:0, {OWN}",
    f"allreduce, {OWN}",
    f"wait, {OWN}",
    f"synchronize {OWN}, {JOBS}",
]
STAGING = [f"zeros on cuda:0, {OWN}", *[f"zeros on cpu, pinned, {JOBS}"] * 3]
EXCHANGE = [
    f"timeout 50 s, {JOBS}",
    f"zero_ , {OWN}",
    f"copy_ {{'non_blocking': True}}, {OWN}",
    f"allreduce, {OWN}",
    f"wait, {OWN}",
    f"copy_ {{'non_blocking': True}}, {OWN}",
    f"record on {OWN}, {OWN}",
    f"query, {JOBS}",
    f"query, {JOBS}",
]
LATE = [
    CONNECTING[0].replace("50 s", "30 s"),
    *CONNECTING[1:3],
    f"abort, {OWN}",
    "given up",
    *CONNECTING[3:],
    f"abort, {JOBS}",
]


def test_cuda_is_called_in_this_order() -> None:
    log = log_of_one_rank(device_ops)
    staging = log[len(CONNECTING) : -len(EXCHANGE) - 2]
    assert log == [*CONNECTING, *staging, *EXCHANGE, f"abort, {JOBS}", "keys left: []"]
    assert sorted(staging) == sorted([f"zeros on cuda:0, {OWN}"] * 3 + [f"zeros on cpu, pinned, {JOBS}"] * 4)


def test_a_connection_that_is_given_up_is_ended_at_once_and_once_more_when_it_is_late() -> None:
    assert log_of_one_rank(device_ops, late_peer=True) == [*LATE, "keys left: []"]


def ops_without(number: int) -> tuple[ModuleType, list[str]]:
    """Every call that CUDA or NCCL hears of, and what makes a copy asynchronous."""
    cuda = ("CudaOps", "_NcclGroup")
    return without(device_ops, lambda owner, name: True, number, keywords=("non_blocking", "pin_memory"), classes=cuda)


CUDA_CALLS = ops_without(0)[1]


@pytest.mark.parametrize("number", range(1, len(CUDA_CALLS) + 1))
def test_without_any_one_call_the_order_is_another(number: int) -> None:
    module, found = ops_without(number)
    assert found == CUDA_CALLS
    fine, late = log_of_one_rank(device_ops), log_of_one_rank(device_ops, late_peer=True)
    try:
        differs = log_of_one_rank(module) != fine or log_of_one_rank(module, late_peer=True) != late
    except BaseException:
        differs = True
    assert differs, f"nothing notices that {found[number - 1]} is missing"


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
