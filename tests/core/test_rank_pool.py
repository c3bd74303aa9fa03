"""The pool that the other tests stand on."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rank_pool import RankPool, RanksHungError, UnpicklableError, reached, store_address


class LocalError(Exception):
    """Defined where no worker can import it."""


class TwoArgumentsError(Exception):
    """Its pickle cannot be loaded: pickle calls the class with `args`, which is one string."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def own_rank(rank: int, world_size: int) -> int:
    return rank


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_body_runs_on_every_rank_of_its_own_process_group(pool: RankPool, world_size: int) -> None:
    def body(rank: int, world_size: int, offset: int) -> tuple[int, int, float]:
        import torch
        import torch.distributed as dist

        total = torch.tensor([float(rank + offset)])
        dist.all_reduce(total)
        return dist.get_rank(), dist.get_world_size(), total.item()

    total = float(sum(rank + 7 for rank in range(world_size)))
    assert pool.values(world_size, body, 7) == [(rank, world_size, total) for rank in range(world_size)]


def test_the_same_processes_serve_each_run_and_have_imported_torch_before(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[int, bool]:
        return os.getpid(), "torch" in sys.modules

    first = pool.values(4, body)
    assert len({pid for pid, _ in first}) == 4
    assert all(imported for _, imported in first)
    assert pool.values(4, body) == first


def test_an_empty_body_on_four_ranks_takes_a_fraction_of_a_second(pool: RankPool) -> None:
    pool.values(4, own_rank)
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        pool.values(4, own_rank)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 1.0  # about 0.03 on an idle machine


def test_without_init_a_body_makes_its_own_group_from_the_store(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[bool, bytes]:
        import torch.distributed as dist
        from torch._C._distributed_c10d import TCPStore

        store = TCPStore(*store_address(), None, False, wait_for_workers=False)
        store.set(f"from {rank}", str(rank))
        return dist.is_initialized(), store.get(f"from {1 - rank}")

    assert pool.values(2, body, init=False) == [(False, b"1"), (False, b"0")]


def test_an_exception_comes_back_as_it_was_with_its_causes_and_its_traceback(pool: RankPool) -> None:
    def fails_here() -> None:
        try:
            raise KeyError("innermost")
        except KeyError as exc:
            raise OSError("inner") from exc

    def body(rank: int, world_size: int) -> None:
        if rank == 1:
            try:
                fails_here()
            except OSError as exc:
                raise LocalError("outer") from exc

    fine, failed = pool.run(2, body)
    assert fine.error is None
    assert isinstance(failed.error, LocalError)
    assert isinstance(failed.error.__cause__, OSError)
    assert isinstance(failed.error.__cause__.__cause__, KeyError)
    assert "in fails_here" in failed.traceback


def test_what_cannot_be_pickled_is_an_error_with_the_text_of_the_original(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        if rank == 0:
            raise TwoArgumentsError("this", "that")
        return threading.Lock()

    outcomes = pool.run(2, body)
    assert isinstance(outcomes[0].error, UnpicklableError)
    assert "TwoArgumentsError: this and that" in str(outcomes[0].error)
    assert "cannot pickle '_thread.lock'" in str(outcomes[1].error)


def test_a_cause_that_cannot_be_pickled_keeps_its_own_traceback(pool: RankPool) -> None:
    def fails_here() -> None:
        raise TwoArgumentsError("this", "that")

    def body(rank: int, world_size: int) -> None:
        try:
            fails_here()
        except TwoArgumentsError as exc:
            raise LocalError("outer") from exc

    (outcome,) = pool.run(1, body)
    assert isinstance(outcome.error, LocalError)
    assert isinstance(outcome.error.__cause__, UnpicklableError)
    assert "in fails_here" in str(outcome.error.__cause__)


def test_values_fails_with_the_traceback_of_every_rank_that_failed(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        if rank:
            raise ValueError(f"from rank {rank}")

    with pytest.raises(AssertionError, match=r"failed on \[1, 2\](.|\n)*from rank 1(.|\n)*from rank 2"):
        pool.values(3, body)


def test_a_hang_shows_the_stack_of_each_rank_that_hangs_and_the_next_run_works(pool: RankPool) -> None:
    def waits_for_ever(rank: int, world_size: int) -> None:
        if rank != 1:
            threading.Event().wait()

    with pytest.raises(RanksHungError) as caught:
        pool.run(3, waits_for_ever, timeout_s=0.5)
    before, after = str(caught.value).split("--- rank 1 finished")
    for part, rank in ((before, 0), (after, 2)):
        assert f"--- rank {rank} hung" in part
        assert "in waits_for_ever" in part
    assert pool.values(3, own_rank) == [0, 1, 2]


def test_a_killed_rank_is_reported_and_replaced(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    outcomes = pool.run(2, body, expect_death=[1])
    assert [outcome.exitcode for outcome in outcomes] == [None, -signal.SIGKILL]
    assert pool.values(2, own_rank) == [0, 1]


def test_a_death_that_was_not_expected_fails_even_while_a_forked_child_holds_the_connection(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        if os.fork() == 0:
            time.sleep(2)
        os._exit(5)

    with pytest.raises(AssertionError, match=r"death of \[\], not of \[0\]\n--- rank 0 died with exit code 5"):
        pool.run(1, body, timeout_s=1.5)


def test_a_rank_can_be_sent_a_signal_once_it_has_reached_a_point(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        if rank == 1:
            reached("waits")
            for _ in range(600):
                time.sleep(0.1)  # in parts: a signal that comes just before a sleep does not end it
        return os.getpid()

    running = pool.start(2, body)
    pid = running.pid(1)
    running.wait_for(1, "waits")
    os.kill(pid, signal.SIGINT)
    fine, interrupted = running.wait()
    assert fine.value == running.pid(0)
    assert isinstance(interrupted.error, KeyboardInterrupt)
    os.kill(pid, signal.SIGINT)  # between two bodies: ignored
    assert pool.values(2, lambda rank, world_size: os.getpid()) == [fine.value, pid]


def test_waiting_for_a_point_ends_with_the_rank(pool: RankPool) -> None:
    with pytest.raises(AssertionError, match="rank 0 never reached 'nowhere': it finished"):
        pool.start(1, own_rank).wait_for(0, "nowhere")


def test_a_body_that_nobody_waits_for_does_not_disturb_the_next(pool: RankPool) -> None:
    pool.start(1, lambda rank, world_size: time.sleep(60))
    assert pool.values(1, own_rank) == [0]


def test_a_run_that_cannot_start_leaves_nothing_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = RankPool()
    try:
        assert pool.values(1, own_rank, init=False) == [0]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/bin/false")
            with pytest.raises(RuntimeError, match="ended with 1 before it was ready"):
                pool.start(2, lambda rank, world_size: "from the run that could not start", init=False)
        assert pool.values(2, own_rank, init=False) == [0, 1]
    finally:
        assert pool.close() == []


def test_a_closed_pool_leaves_nothing_and_says_what_bodies_left() -> None:
    def body(rank: int, world_size: int) -> tuple[int, int, str]:
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return os.getpid(), sleeper.pid, tempfile.mkdtemp()

    pool = RankPool()
    worker, sleeper, folder = pool.values(1, body, init=False)[0]
    assert pool.close() == [f"process {sleeper}", folder]
    assert not pool.scratch.exists()
    assert not Path(folder).exists()
    for pid in (worker, sleeper):
        assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether the process is there and not just a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
