"""`shm+nccl`, with stand-ins for the calls to CUDA and NCCL: leaders exchange through buffers of a device."""

from typing import Any

import pytest

from cuda_log import cuda_on_the_cpu
from environment import variables
from gather_core import Gatherer
from gather_transports.shm import ShmTransport
from rank_pool import RankPool


def objects_of(rank: int) -> list[Any]:
    return [{"rank": rank}, bytes([rank]) * 300_000, bytes(3_000_000 if rank == 1 else rank)]


def test_every_operation_is_exact_over_two_hosts(pool: RankPool) -> None:
    if reason := ShmTransport.unavailable(None):
        pytest.skip(reason)

    def body(rank: int, world_size: int) -> Any:
        with (
            variables(GATHER_HOST_ID=f"host of {rank // 2}"),
            cuda_on_the_cpu(),
            Gatherer(transport="shm+nccl", timeout_s=60) as gatherer,
        ):
            columns = [gatherer.all_gather(obj) for obj in objects_of(rank)]
            at_last = gatherer.gather(objects_of(rank), dst=3)
            return columns, at_last, gatherer.transport.spec, gatherer._connection.context.hosts

    columns = [list(column) for column in zip(*map(objects_of, range(4)), strict=True)]
    for rank, (gathered, at_last, spec, hosts) in enumerate(pool.values(4, body, timeout_s=120)):
        assert gathered == columns
        assert at_last == ([objects_of(peer) for peer in range(4)] if rank == 3 else None)
        assert (spec, hosts) == ("shm+nccl", (0, 0, 1, 1))
