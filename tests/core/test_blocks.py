"""Which memory the pool lends, how much it keeps, and for how long."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gather_core import blocks
from gather_core.blocks import IDLE_S, KEPT_NBYTES, REUSED_FROM_NBYTES, BlockPool, drop_free_blocks, result_buffer
from gather_core.memory import ALIGNMENT, aligned_buffer

N = REUSED_FROM_NBYTES


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.ticks: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        self.ticks()
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock: Clock) -> BlockPool:
    return BlockPool(8 * N, clock)


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def block_nbytes(view: memoryview) -> int:
    return memoryview(view.obj).nbytes


@given(st.lists(st.tuples(st.sampled_from(["lend", "drop", "slice", "wait"]), st.integers(0, 40)), max_size=60))
def test_whatever_comes_and_goes_no_two_results_share_memory_and_all_stays_in_bounds(
    steps: list[tuple[str, int]],
) -> None:
    clock = Clock()
    pool = BlockPool(8 * N, clock)
    alive: list[tuple[int, Any, int]] = []  # the byte that it is full of, the memory, the size of its block
    peak_nbytes = 0
    for number, (step, size) in enumerate(steps):
        if step == "lend":
            view = pool.lend(N + size * N // 16)
            view[:] = bytes([number]) * len(view)
            alive.append((number, np.frombuffer(view, np.uint8), block_nbytes(view)))
            del view
        elif step == "wait":
            clock.now_s += IDLE_S / 4
        elif alive:
            byte, array, block = alive.pop(size % len(alive))
            if step == "slice":
                alive.append((byte, torch.from_numpy(array[size:])[1:].numpy(), block))
            del array
        peak_nbytes = max(peak_nbytes, sum(block for _, _, block in alive))
    assert all((array == byte).all() for byte, array, _ in alive)
    free_nbytes = pool.drop_free()
    assert free_nbytes <= 8 * N
    assert free_nbytes + sum(block for _, _, block in alive) <= peak_nbytes


@given(st.integers(N, 64 * N))
def test_a_block_is_aligned_writable_and_at_most_an_eighth_larger(nbytes: int) -> None:
    view = BlockPool().lend(nbytes)
    assert address(view) % ALIGNMENT == 0
    assert (view.nbytes, view.format, view.ndim, view.readonly) == (nbytes, "B", 1, False)
    assert nbytes <= block_nbytes(view) <= nbytes * 9 // 8


def test_sizes_that_differ_a_little_use_the_same_blocks(pool: BlockPool) -> None:
    for nbytes in (N + N // 8 - 1, N + 1):
        pool.lend(nbytes)
    assert pool.drop_free() == N + N // 8


def test_small_memory_is_not_tracked() -> None:
    drop_free_blocks()
    result_buffer(N - 1)
    assert drop_free_blocks() == 0


def test_more_than_is_kept_is_lent_but_not_kept(pool: BlockPool) -> None:
    pool.lend(9 * N)[:] = bytes(9 * N)
    results = [pool.lend(N) for _ in range(12)]
    assert len({address(view) for view in results}) == 12
    results.clear()
    assert pool.drop_free() == 8 * N


def test_free_blocks_are_dropped_on_request_and_those_in_use_are_not(pool: BlockPool) -> None:
    kept = pool.lend(N)
    pool.lend(2 * N)
    assert pool.drop_free() == 2 * N
    assert pool.drop_free() == 0
    lent = address(kept)
    del kept
    assert address(pool.lend(N)) == lent


def test_a_block_that_is_free_for_long_is_dropped_while_others_of_its_size_are_used(
    pool: BlockPool, clock: Clock
) -> None:
    results = [pool.lend(2 * N), pool.lend(2 * N), pool.lend(N), pool.lend(N)]
    for _ in range(4):
        results.clear()
        clock.now_s += IDLE_S / 2
        results = [pool.lend(2 * N), pool.lend(N), pool.lend(N)]
    results.clear()
    assert pool.drop_free() == 4 * N


def test_blocks_of_a_size_that_is_no_longer_used_are_dropped_while_another_size_is(
    pool: BlockPool, clock: Clock
) -> None:
    results = [pool.lend(N), pool.lend(N), pool.lend(2 * N)]
    results.clear()
    for _ in range(4):
        pool.lend(2 * N)
        clock.now_s += IDLE_S / 2
    assert pool.drop_free() == 2 * N


def test_blocks_in_use_for_long_make_room_for_new_ones_and_stay_their_users(pool: BlockPool, clock: Clock) -> None:
    kept = np.frombuffer(pool.lend(8 * N), np.uint8)
    kept[:] = 7
    pool.lend(N)
    assert pool.drop_free() == 0
    clock.now_s += IDLE_S + 1
    pool.lend(N)
    assert pool.drop_free() == N
    pool.lend(8 * N)[:] = bytes(8 * N)
    assert (kept == 7).all()


def test_a_loan_amid_a_loan_gets_memory_of_its_own(pool: BlockPool, clock: Clock) -> None:
    pool.lend(N)  # free now, and so what both would get
    inner = []

    def lend_amid() -> None:
        clock.ticks = lambda: None
        inner.append(pool.lend(N))

    clock.ticks = lend_amid
    outer = pool.lend(N)
    assert address(outer) != address(inner[0])


def test_an_interrupted_loan_leaves_memory_to_its_users_and_the_pool_in_order(
    pool: BlockPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    kept = pool.lend(N)
    kept[:] = b"7" * N
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "_lease_of", interrupt)
        for _ in range(8):
            with pytest.raises(KeyboardInterrupt):
                pool.lend(N)
    pool.lend(N)[:] = bytes(N)
    assert kept == b"7" * N
    assert pool.drop_free() == N


def test_a_result_that_goes_amid_the_loan_that_forgets_it_is_not_kept_beyond_the_bound(
    pool: BlockPool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [pool.lend(8 * N)]
    clock.now_s += IDLE_S + 1

    def drop_and_allocate(nbytes: int) -> memoryview:
        held.clear()
        return aligned_buffer(nbytes)

    monkeypatch.setattr(blocks, "aligned_buffer", drop_and_allocate)
    pool.lend(N)
    pool.lend(N)
    assert pool.drop_free() == N


def test_too_much_memory_is_an_error_after_which_lending_goes_on(pool: BlockPool) -> None:
    with pytest.raises(MemoryError):
        pool.lend(1 << 60)
    assert len(pool.lend(N)) == N


def test_results_of_the_process_share_one_pool_that_can_be_emptied() -> None:
    drop_free_blocks()
    result_buffer(3 * N)
    assert drop_free_blocks() == 3 * N
    assert drop_free_blocks() == 0


def test_a_process_keeps_no_more_than_is_documented() -> None:
    drop_free_blocks()
    results = [result_buffer(KEPT_NBYTES // 4) for _ in range(6)]
    results.clear()
    assert drop_free_blocks() <= KEPT_NBYTES
