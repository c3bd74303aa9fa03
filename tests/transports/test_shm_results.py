"""Results of large gathers over shared memory, which are not copied: whatever is done with them, they are exact."""

import gc
import os
import random
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from gather_core import Gatherer
from gather_core.errors import GatherError
from gather_core.testing.thread_ranks import local_contexts
from gather_transports import shm_loans, shm_region
from gather_transports.shm import ShmTransport
from rank_pool import RankPool, reached

NUM = 300_000
"""Numbers of 8 bytes in an array that is lent."""


def array_of(rank: int, number: int, extra: int = 0) -> Any:
    return np.arange(NUM + extra) * (rank + 1) + number


class Unpicklable:
    def __reduce__(self) -> str:
        raise ValueError("not this one")


def own_areas(gatherer: Gatherer) -> Any:
    transport = gatherer._membership._transport
    assert isinstance(transport, ShmTransport)
    assert transport._group is not None
    return transport._group.own


def num_free(own: Any) -> int:
    return sum(map(own._is_free, own._areas))


@pytest.mark.fault(53)
def test_results_that_are_kept_and_changed_stay_what_they_are_here(pool: RankPool) -> None:
    """Ranks keep and drop results at their own random; some write into them; each looks at all that it has, always."""

    def body(rank: int, world_size: int) -> int:
        chance = random.Random(rank)
        kept: list[tuple[int, int, Any, int]] = []
        num_looked = 0
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            for number in range(60):
                result = gatherer.all_gather(array_of(rank, number, number % 7))
                assert [len(array) for array in result] == [NUM + number % 7] * world_size
                for peer, array in enumerate(result):
                    if chance.random() < 0.6:
                        mark = chance.choice([-1, number])
                        array[::1000] = mark if mark < 0 else array[::1000]
                        kept.append((peer, number, array[chance.randrange(9) * 1000 :], mark))
                del result, array
                while len(kept) > 3 and chance.random() < 0.7:
                    del kept[chance.randrange(len(kept))]
                for peer, of, part, mark in kept:
                    whole = array_of(peer, of, of % 7)
                    if mark < 0:
                        whole[::1000] = mark
                    assert (part == whole[len(whole) - len(part) :]).all(), (rank, peer, of)
                    num_looked += 1
        for peer, of, part, _ in kept:
            assert part[1] == array_of(peer, of)[1 + NUM + of % 7 - len(part)], "it outlives the Gatherer"
        return num_looked

    assert all(outcome.value > 100 for outcome in pool.run(3, body))


def test_ten_results_are_kept_without_a_copy_and_more_with_one(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[list[int], bool]:
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            own = own_areas(gatherer)
            kept: list[Any] = []
            free = []
            for number in range(14):
                kept.append(gatherer.all_gather(array_of(rank, number)))
                free.append(num_free(own))
            for number, result in enumerate(kept):
                for peer in range(world_size):
                    assert (result[peer] == array_of(peer, number)).all()
            kept.clear()
            result.clear()
            gatherer.all_gather(None)  # all have dropped theirs
            return free, num_free(own) == 12

    for outcome in pool.run(2, body):
        free, all_back = outcome.value
        assert free == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 2, 2, 2, 2]
        assert all_back


@pytest.mark.parametrize("make", ["array", "tensor", "fortran", "tensors of a step"])
def test_what_comes_is_of_the_same_kind_and_writable(pool: RankPool, make: str) -> None:
    def body(rank: int, world_size: int) -> bool:
        obj: Any = {
            "array": array_of(rank, 1),
            "tensor": torch.arange(NUM) + rank,
            "fortran": np.asfortranarray(np.arange(NUM).reshape(3, -1) + rank),
            "tensors of a step": [torch.randn(1000, 768), torch.randn(1000, 768), list(range(999))],
        }[make]
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            back = gatherer.all_gather(obj)[rank]
            if make == "tensors of a step":
                assert all(torch.equal(a, b) for a, b in zip(back[:2], obj[:2], strict=True))
                assert back[2] == obj[2]
                assert num_free(own_areas(gatherer)) == 11, "both tensors lie where they were sent"
                back[0] += 1
            else:
                assert type(back) is type(obj)
                assert (back == obj).all()
                if make == "fortran":
                    assert back.flags.f_contiguous
                back += 1
                assert (back == obj + 1).all()
        return True

    assert [outcome.value for outcome in pool.run(2, body)] == [True, True]


@pytest.mark.fault(53)
def test_children_see_what_was_there_when_they_were_forked(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            kept = [gatherer.all_gather(array_of(rank, number)) for number in range(4)]
            kept[0][1 - rank][7] = -5
            go_on, wait = os.pipe()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    os.close(wait)
                    os.read(go_on, 1)  # until the parent has gone on
                    assert kept[0][1 - rank][7] == -5
                    kept[0][1 - rank][7] = array_of(1 - rank, 0)[7]
                    for number, result in enumerate(kept):
                        for peer, array in enumerate(result):
                            assert (array == array_of(peer, number)).all()
                    code = 0
                finally:
                    os._exit(code)
            os.close(go_on)
            for number in range(20):
                gatherer.all_gather(array_of(rank, 1000 + number))
            os.close(wait)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for number, result in enumerate(kept):
                for peer, array in enumerate(result):
                    assert (array[8:] == array_of(peer, number)[8:]).all()
            return code

    assert [outcome.value for outcome in pool.run(2, body)] == [0, 0]


@pytest.mark.fault(53)
def test_results_outlive_the_rank_that_sent_them(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> bool:
        gatherer = Gatherer(transport="shm", timeout_s=60)
        kept = [gatherer.all_gather(array_of(rank, number)) for number in range(3)]
        if rank == 1:
            reached("here")
            time.sleep(60)
        reached("here")
        with pytest.raises(GatherError):
            gatherer.all_gather(array_of(rank, 9))
        gatherer.close()
        del gatherer
        return all((kept[number][1] == array_of(1, number)).all() for number in range(3))

    running = pool.start(2, body)
    for rank in range(2):
        running.wait_for(rank, "here")
    os.kill(running.pid(1), signal.SIGKILL)
    assert running.wait()[0].value is True


def test_other_threads_may_drop_results_while_the_next_are_gathered(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        kept: list[tuple[int, Any]] = []
        wrong: list[int] = []
        is_over = threading.Event()

        def look_and_drop() -> None:
            while not is_over.is_set() or kept:
                try:
                    number, result = kept.pop()
                except IndexError:
                    time.sleep(0.001)
                    continue
                for peer, array in enumerate(result):
                    if not (array == array_of(peer, number)).all():
                        wrong.append(number)

        threads = [threading.Thread(target=look_and_drop) for _ in range(2)]
        for thread in threads:
            thread.start()
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            for number in range(60):
                kept.append((number, gatherer.all_gather(array_of(rank, number))))
        is_over.set()
        for thread in threads:
            thread.join()
        return len(wrong)

    assert [outcome.value for outcome in pool.run(2, body)] == [0, 0]


def test_what_cannot_be_mapped_once_more_is_read_until_the_next_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> memoryview:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(shm_region, "borrow", refuse)
    transport = ShmTransport()
    transport.open(local_contexts(1)[0], 1024, timeout_s=5)
    transport.may_give = True
    assert transport._group is not None
    own, nbytes = transport._group.own, 2 << 20
    before = memoryview(b"")
    for number in range(30):
        transport.slot(nbytes)[:nbytes] = bytes([number]) * nbytes  # while what came before can still be read
        assert not before or before[-1] == number - 1
        (before,) = transport.all_gather_slots(nbytes, timeout_s=5)
        assert before.readonly
        assert num_free(own) == 11
    transport.slot(1)
    transport.all_gather_slots(1, timeout_s=5)
    assert num_free(own) == 12
    transport.close()


def test_results_are_exact_where_one_rank_cannot_map_them_once_more(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        def refuse(*_: object) -> memoryview:
            raise OSError(12, "Cannot allocate memory")

        borrow = shm_loans.borrow
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            if rank == 0:
                vars(shm_region)["borrow"] = refuse
            try:
                kept = [gatherer.all_gather(array_of(rank, number)) for number in range(20)]
            finally:
                vars(shm_region)["borrow"] = borrow
            for number, result in enumerate(kept):
                for peer in range(world_size):
                    assert (result[peer] == array_of(peer, number)).all()
            kept.clear()
            result.clear()
            gatherer.all_gather(None)
            gatherer.all_gather(None)
            return num_free(own_areas(gatherer))

    assert [outcome.value for outcome in pool.run(2, body)] == [12, 12]


def test_ranks_that_are_told_not_to_lend_do_not(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[str, int]:
        with Gatherer(transport="shm:lend=false", timeout_s=60) as gatherer:
            kept = gatherer.all_gather(array_of(rank, 5))
            kept[rank] += 1
            assert (kept[1 - rank] == array_of(1 - rank, 5)).all()
            return gatherer._membership._transport.spec, num_free(own_areas(gatherer))

    assert [outcome.value for outcome in pool.run(2, body)] == [("shm:lend=false", 12)] * 2


def test_objects_of_many_small_parts_are_not_lent(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[int]:
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            own, free = own_areas(gatherer), []
            for obj in ([np.arange(20_000) + rank] * 1, bytes(3 << 20), [np.arange(20_000) for _ in range(20)]):
                kept = gatherer.all_gather(obj)
                assert all(np.array_equal(each, obj) if rank == peer else True for peer, each in enumerate(kept))
                gatherer.all_gather(None)  # behind which the other rank has decoded too
                free.append(num_free(own))
            kept = gatherer.all_gather([array_of(rank, 1), array_of(rank, 2)])
            return [*free, num_free(own)]

    assert [outcome.value for outcome in pool.run(2, body)] == [[12, 12, 12, 11]] * 2


def test_what_is_caught_and_dropped_gives_loans_back(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            gc.disable()
            try:
                for number in range(15):
                    with suppress(GatherError):
                        gatherer.all_gather(array_of(rank, number) if rank == 0 or number % 2 else Unpicklable())
                gatherer.all_gather(None)
                return num_free(own_areas(gatherer))
            finally:
                gc.enable()

    assert [outcome.value for outcome in pool.run(2, body)] == [12, 12]


def test_sealed_payloads_are_not_lent(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        with Gatherer(transport="shm", timeout_s=60, key=b"k" * 32) as gatherer:
            kept = gatherer.all_gather(array_of(rank, 5))
            assert (kept[1 - rank] == array_of(1 - rank, 5)).all()
            return int(num_free(own_areas(gatherer)))

    assert [outcome.value for outcome in pool.run(2, body)] == [12, 12]


def test_hosts_of_several_ranks_do_not_hold_what_their_leader_published(
    pool: RankPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(rank: int, world_size: int) -> list[int]:
        os.environ["GATHER_HOST_ID"] = f"host-{rank // 2}"
        try:
            with Gatherer(transport="shm+gloo", timeout_s=60) as gatherer:
                kept = [gatherer.all_gather(array_of(rank, number)) for number in range(3)]
                for number, result in enumerate(kept):
                    for peer, array in enumerate(result):
                        assert (array == array_of(peer, number)).all()
                transport: Any = gatherer._membership._transport
                return [transport._inner.may_give, num_free(transport._inner._group.own)]
        finally:
            del os.environ["GATHER_HOST_ID"]

    assert [outcome.value for outcome in pool.run(3, body)] == [[False, 12]] * 3
