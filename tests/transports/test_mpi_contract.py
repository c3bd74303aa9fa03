"""The transport contract, kept by `mpi` under mpiexec."""

from collections.abc import Callable

import pytest

from gather_core import GroupContext, Transport
from gather_core.registry import get_transport
from gather_core.testing.transport_contract import TransportContract
from gather_core.testing.transport_exchanges import ExchangeClauses
from gather_transports.mpi import MpiTransport
from mpi_pool import MpiPools

pytest_plugins = ["mpi_fixture"]


class UnderMpiexec(ExchangeClauses):
    @pytest.fixture(autouse=True)
    def take_pools(self, mpi_pools: MpiPools) -> None:
        self.pools = mpi_pools

    def make_transport(self) -> Transport:
        return MpiTransport()

    def run_ranks(self, world_size: int, body: Callable[[GroupContext], None]) -> None:
        def on_rank(rank: int, world_size: int) -> None:
            body(MpiTransport.join(None))

        self.pools(world_size).values(world_size, on_rank, timeout_s=self.scenario_timeout_s)


class TestTwoRanks(UnderMpiexec, TransportContract):
    world_sizes = (2,)


class TestThreeRanks(UnderMpiexec, TransportContract):
    world_sizes = (3,)


class TestDirectAndInChunks(UnderMpiexec):
    world_sizes = (2, 3)

    def make_transport(self) -> Transport:
        return get_transport("mpi:algorithm='direct',chunk_nbytes=1000")


class TestCollectivesInChunks(UnderMpiexec):
    world_sizes = (3,)

    def make_transport(self) -> Transport:
        return get_transport("mpi:algorithm='allgatherv',chunk_nbytes=1000")
