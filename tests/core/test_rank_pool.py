"""The pool that the other tests stand on."""

import os
import signal
import time

import pytest

from rank_pool import RankPool, RanksHungError, reached


def test_a_body_runs_on_every_rank_in_the_same_processes_each_time(pool: RankPool) -> None:
    def body(rank: int, world_size: int, extra: int) -> tuple[int, int, int, int]:
        return rank, world_size, extra, os.getpid()

    first = pool.values(4, body, 7)
    assert [value[:3] for value in first] == [(rank, 4, 7) for rank in range(4)]
    assert pool.values(4, body, 7) == first


def test_an_exception_comes_back_with_its_cause(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        if rank == 1:
            raise ValueError("outer") from KeyError("inner")

    outcomes = pool.run(2, body)
    assert outcomes[0].error is None
    assert isinstance(outcomes[1].error, ValueError)
    assert isinstance(outcomes[1].error.__cause__, KeyError)


def test_a_hang_is_killed_and_shows_the_stack_of_each_rank(pool: RankPool) -> None:
    def wait_for_ever(rank: int, world_size: int) -> None:
        if rank == 0:
            time.sleep(1000)

    with pytest.raises(RanksHungError, match=r"hung: \[0\](.|\n)*wait_for_ever"):
        pool.run(2, wait_for_ever, timeout_s=1)
    assert pool.values(2, lambda rank, world_size: rank) == [0, 1]


def test_a_killed_rank_is_reported_and_replaced(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        reached("start")
        if rank == 1:
            time.sleep(1000)

    running = pool.start(2, body)
    running.wait_for(1, "start")
    os.kill(running.pid(1), signal.SIGKILL)
    assert running.wait()[1].exitcode == -signal.SIGKILL
    assert pool.values(2, lambda rank, world_size: rank) == [0, 1]
