"""The transport behind `nccl`, over Gloo: on the CPU, and on a stand-in for a device that does everything late."""

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from deletions import without
from fresh_python import run_python
from gather_core import AbortedError, Capabilities, TransportError, TransportTimeoutError
from gather_core.local_store import LocalBell, LocalStore
from gather_core.memory import aligned_buffer
from gather_core.transport import GroupContext
from gather_transports import torch_collective
from gather_transports.device_ops import CpuOps, DeviceOps
from recording_ops import RecordingOps

SLOT = 1024
CHUNK = 4096
WORLD_SIZE = 2
ALGORITHMS = ["all_reduce", "all_gather"]
ORDERING = {"stream", "launch", "wait", "record", "_finish", "zero", "copy"}
"""What `_exchange` calls so that one thing comes after another: methods of DeviceOps, and the host's own wait."""


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def over_gloo(module: ModuleType) -> Callable[..., Any]:
    """The class of that module, as a transport of its own name."""
    made: Callable[..., Any] = type(
        "OverGloo",
        (module.TorchCollectiveTransport,),
        {"name": "over_gloo", "capabilities": Capabilities(locality="any")},
    )
    return made


def failures_of_ranks(
    body: Callable[[Any], object],
    ops: Callable[[], DeviceOps],
    algorithm: str,
    module: ModuleType = torch_collective,
) -> list[BaseException | None]:
    """Runs `body(transport)` on ranks that are threads; returns what each raised."""
    store, make = LocalStore(), over_gloo(module)
    failures: list[BaseException | None] = [None] * WORLD_SIZE

    def run_rank(rank: int) -> None:
        device = ops()
        transport = make(device, algorithm, CHUNK)
        context = GroupContext(rank, WORLD_SIZE, store, LocalBell(), (0, 1), scope="test", hosts=(0, 0))
        try:
            transport.open(context, SLOT, timeout_s=20)
            body(transport)
        except BaseException as exc:
            failures[rank] = exc
        finally:
            if isinstance(device, RecordingOps):
                device.close()
            transport.close()

    threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(WORLD_SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return failures


def content(rank: int, nbytes: int, salt: int) -> bytes:
    return bytes((rank * 31 + salt * 7 + i) % 251 for i in range(nbytes))


def exchange_slots(transport: Any, timeout_s: float = 20) -> None:
    for number, filled in enumerate([(SLOT, 17), (0, SLOT), (64, 65)]):
        nbytes = filled[transport.rank]
        transport.slot(nbytes)[:] = content(transport.rank, nbytes, number)
        views = transport.all_gather_slots(nbytes, timeout_s=timeout_s)
        assert [bytes(view[:n]) for view, n in zip(views, filled, strict=True)] == [
            content(rank, n, number) for rank, n in enumerate(filled)
        ]


def exchange_payloads(transport: Any, timeout_s: float = 20) -> None:
    """Alike (one padded all-gather), and one much larger (a broadcast); both in several chunks."""
    for number, sizes in enumerate([(9000, 8500), (9000, 5), (0, 700)]):
        payload = content(transport.rank, sizes[transport.rank], number)
        parts = [memoryview(payload)[:7], memoryview(payload)[7:]]
        into = [aligned_buffer(nbytes) for nbytes in sizes]
        arrived = transport.all_gather_exact(parts, sizes, into=into, timeout_s=timeout_s)
        assert [bytes(view) for view in arrived] == [content(rank, n, number) for rank, n in enumerate(sizes)]


def exchange_routed(transport: Any, timeout_s: float = 20) -> None:
    rank = transport.rank
    for number, matrix in enumerate([((10, 9000), (5000, 0)), ((0, 0), (70, 1))]):
        payloads = [content(rank, nbytes, number + peer) for peer, nbytes in enumerate(matrix[rank])]
        into = [aligned_buffer(row[rank]) for row in matrix]
        parts = [[memoryview(payload)] for payload in payloads]
        arrived = transport.all_to_all_exact(parts, matrix, into=into, timeout_s=timeout_s)
        assert [bytes(view) for view in arrived] == [
            content(src, row[rank], number + rank) for src, row in enumerate(matrix)
        ]


def exchange_everything(transport: Any) -> None:
    for exchange in (exchange_slots, exchange_payloads, exchange_routed):
        exchange(transport)


@pytest.mark.parametrize("ops", [CpuOps, RecordingOps])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_exchange_is_exact(ops: Callable[[], DeviceOps], algorithm: str) -> None:
    assert failures_of_ranks(exchange_everything, ops, algorithm) == [None, None]


@pytest.mark.parametrize("ops", [CpuOps, RecordingOps])
def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_the_deadline(ops: Callable[[], DeviceOps]) -> None:
    given_up = threading.Event()

    def body(transport: Any) -> None:
        if transport.rank == 0:
            with pytest.raises(TransportTimeoutError):
                exchange_slots(transport, timeout_s=0.3)
            given_up.set()
        assert given_up.wait(20)

    assert failures_of_ranks(body, ops, "all_gather") == [None, None]


@pytest.mark.parametrize("ops", [CpuOps, RecordingOps])
def test_a_thread_that_waits_for_a_rank_is_freed_by_an_abort(ops: Callable[[], DeviceOps]) -> None:
    given_up = threading.Event()

    def body(transport: Any) -> None:
        if transport.rank == 0:
            threading.Timer(0.1, transport.abort, ["enough"]).start()
            with pytest.raises(AbortedError, match="enough"):
                exchange_slots(transport)
            given_up.set()
        assert given_up.wait(20)

    assert failures_of_ranks(body, ops, "all_gather") == [None, None]


def module_without(number: int) -> tuple[ModuleType, list[str]]:
    return without(torch_collective, lambda owner, name: owner in ("ops", "self") and name in ORDERING, number)


ORDERING_CALLS = module_without(0)[1]


def test_every_kind_of_ordering_call_is_there_to_be_deleted() -> None:
    assert set(ORDERING_CALLS) == ORDERING


@pytest.mark.parametrize("number", range(1, len(ORDERING_CALLS) + 1))
@pytest.mark.fault(52)
def test_without_any_one_ordering_call_an_exchange_goes_wrong(number: int) -> None:
    module, found = module_without(number)
    assert found == ORDERING_CALLS
    # On the job's own stream, which is busy, an exchange never ends; without the others it ends, with other bytes.
    in_time = found[number - 1] != "stream"
    expected, timeout_s = (AssertionError, 20) if in_time else (TransportTimeoutError, 1)

    def body(transport: Any) -> None:
        for exchange in (exchange_slots, exchange_payloads):
            exchange(transport, timeout_s)

    failures = failures_of_ranks(body, RecordingOps, "all_reduce", module)
    assert any(isinstance(failure, expected) for failure in failures), failures


@pytest.mark.fault(52)
def test_the_copy_without_any_deletion_is_right() -> None:
    assert failures_of_ranks(exchange_everything, RecordingOps, "all_reduce", module_without(0)[0]) == [None, None]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_that_was_opened_in_inference_mode_works_outside_of_it(algorithm: str) -> None:
    import torch

    def body(transport: Any) -> None:
        exchange_everything(transport)
        with torch.inference_mode():
            exchange_everything(transport)

    class InInferenceMode(CpuOps):
        def connect(self, *arguments: Any) -> Any:
            self.inference = torch.inference_mode()
            self.inference.__enter__()
            return super().connect(*arguments)

    def leaves_it(transport: Any) -> None:
        transport._ops.inference.__exit__(None, None, None)
        body(transport)

    assert failures_of_ranks(leaves_it, InInferenceMode, algorithm) == [None, None]


def test_an_error_of_the_device_is_no_lost_connection() -> None:
    class Broken(CpuOps):
        def copy(self, into: Any, source: Any) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

    failures = failures_of_ranks(exchange_slots, Broken, "all_gather")
    assert [type(failure) for failure in failures] == [TransportError] * 2
    assert "device-side assert" in str(failures[0])


def test_no_memory_for_slots_is_an_error_of_the_transport() -> None:
    class Full(CpuOps):
        def device_memory(self, nbytes: int) -> Any:
            raise RuntimeError("CUDA out of memory")

    failures = failures_of_ranks(exchange_slots, Full, "all_gather")
    assert {type(failure) for failure in failures} == {TransportError}
    assert "out of memory" in str(failures[0])


def test_a_forked_child_ends_though_it_has_its_parents_connections() -> None:
    assert run_python(FORK) == "0"


FORK = """
import os, sys, threading
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
from gather_core import Capabilities
from gather_core.local_store import LocalBell, LocalStore
from gather_core.transport import GroupContext
from gather_transports.device_ops import CpuOps
from gather_transports.torch_collective import TorchCollectiveTransport

class OverGloo(TorchCollectiveTransport):
    name, capabilities = "over_gloo", Capabilities(locality="any")

store, transports = LocalStore(), [OverGloo(CpuOps(), "all_gather") for _ in range(2)]

def open_rank(rank):
    context = GroupContext(rank, 2, store, LocalBell(), (0, 1), scope="test", hosts=(0, 0))
    transports[rank].open(context, 1024, timeout_s=20)

threads = [threading.Thread(target=open_rank, args=(rank,)) for rank in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
child = os.fork()
if child == 0:
    for transport in transports: transport.close()
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for transport in transports: transport.close()
"""
