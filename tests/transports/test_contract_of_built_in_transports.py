"""The transport contract, kept by what comes with gather-core."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from gather_core import Capabilities, GroupContext, Transport
from gather_core.process_group import join_process_group
from gather_core.registry import get_transport
from gather_core.testing.transport_contract import TransportContract
from gather_core.testing.transport_exchanges import ExchangeClauses
from gather_transports.device_ops import CpuOps
from gather_transports.gloo import GlooTransport
from gather_transports.shm import ShmTransport
from gather_transports.single import SingleTransport
from gather_transports.threads import ThreadGroup, ThreadsTransport
from gather_transports.torch_collective import Algorithm, TorchCollectiveTransport
from gather_transports.torch_objects import AllGatherObjectTransport
from rank_pool import RankPool


class TestSingle(TransportContract):
    world_sizes = (1,)

    def make_transport(self) -> Transport:
        return SingleTransport()


class TestThreads(TransportContract):
    world_sizes = (1, 2, 5)

    def make_transport(self) -> Transport:
        return ThreadsTransport()

    def contexts(self, world_size: int) -> Sequence[GroupContext]:
        team = ThreadGroup(world_size)
        return [ThreadsTransport.join(team.member(rank)) for rank in range(world_size)]


class OnGloo(TransportContract):
    """Its ranks are threads, as each makes a Gloo group of its own over the store that they share."""

    spec: ClassVar[str]

    @pytest.fixture(autouse=True)
    def loopback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def make_transport(self) -> Transport:
        return get_transport(self.spec)


class TestGlooThroughAHub(OnGloo):
    spec = "gloo"


class TestGlooByAllToAll(OnGloo):
    spec = "gloo:hub_up_to_nbytes=0"


class TestGlooDirectly(OnGloo):
    spec = "gloo:hub_up_to_nbytes=0,all_to_all_up_to_nbytes=0,chunk_nbytes=1000"


class InProcesses(ExchangeClauses):
    """The part about bytes, where the ranks are processes of a torch job."""

    @pytest.fixture(autouse=True)
    def take_pool(self, pool: RankPool) -> None:
        self.pool = pool

    def run_ranks(self, world_size: int, body: Callable[[GroupContext], None]) -> None:
        def on_rank(rank: int, world_size: int) -> None:
            body(join_process_group(None))

        self.pool.values(world_size, on_rank, timeout_s=self.scenario_timeout_s)


class TestShm(TransportContract):
    """Its ranks are threads here; in processes below."""

    world_sizes = (1, 2, 3, 4)

    def make_transport(self) -> Transport:
        return ShmTransport()


class TestShmInAFolder(TransportContract):
    world_sizes = (2,)

    def make_transport(self) -> Transport:
        return ShmTransport(folder="/dev/shm", keep_nbytes=0)


class TestShmInProcesses(InProcesses):
    world_sizes = (2, 4)

    def make_transport(self) -> Transport:
        return ShmTransport()


class TestGlooInProcesses(InProcesses):
    world_sizes = (4,)

    def make_transport(self) -> Transport:
        return GlooTransport()


class CollectivesOnGloo(TorchCollectiveTransport):
    """What `nccl` is, on the CPU."""

    name = "collectives_on_gloo"
    capabilities = Capabilities(locality="any")

    def __init__(self, *, algorithm: Algorithm = "all_reduce") -> None:
        super().__init__(CpuOps(), algorithm, chunk_nbytes=4096)


class TestCollectivesWithAllReduce(OnGloo):
    def make_transport(self) -> Transport:
        return CollectivesOnGloo()


class TestCollectivesWithAllGather(OnGloo):
    def make_transport(self) -> Transport:
        return CollectivesOnGloo(algorithm="all_gather")


class TestAllGatherObject(InProcesses):
    world_sizes = (2,)

    def make_transport(self) -> Transport:
        return AllGatherObjectTransport()
