"""The fixture `mpi_pools`, which all test modules share that say `pytest_plugins = ["mpi_fixture"]`."""

from collections.abc import Iterator

import pytest

from mpi_pool import MpiPool, MpiPools, missing


@pytest.fixture(scope="session")
def mpi_pools(nothing_is_left_behind: None) -> Iterator[MpiPools]:
    """Returns the pool of that many ranks; one job of each size serves a session."""
    if reason := missing():
        pytest.skip(reason)
    pools: dict[int, MpiPool] = {}

    def pool_of(world_size: int) -> MpiPool:
        if world_size not in pools:
            pools[world_size] = MpiPool(world_size)
        return pools[world_size]

    yield pool_of
    left = [what for pool in pools.values() for what in pool.close()]
    assert not left, f"bodies left behind: {left}"
