"""Operations that succeed, over ranks that are threads: any world size, any payload size, any thread."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from gather_core import AbortedError, Gatherer
from gather_core.slot import HEADER_NBYTES, payload_nbytes
from gather_transports.threads import ThreadsTransport
from thread_gatherers import FramesCodec, caught, on_gatherers

SLOT = 2048


@pytest.mark.parametrize("world_size", [*range(1, 9), 64])
def test_every_operation_at_every_world_size(world_size: int) -> None:
    everything = [{"rank": rank, "none": None} for rank in range(world_size)]
    roots = {*range(min(world_size, 8)), world_size - 1}

    def body(gatherer: Gatherer) -> object:
        rank, own = gatherer.rank, {"rank": gatherer.rank, "none": None}
        assert (gatherer.world_size, gatherer.transport.name) == (world_size, "threads")
        assert gatherer.all_gather(own, tag="first") == everything
        for root in roots:
            assert gatherer.gather(own, dst=root) == (everything if rank == root else None)
            assert gatherer.broadcast(own if rank == root else "ignored", src=root) == everything[root]
        assert gatherer.run(divmod, 17, rank + 1) == [divmod(17, other + 1) for other in range(world_size)]
        arrays = gatherer.all_gather(np.full(5000, rank))
        assert all(np.array_equal(array, np.full(5000, other)) for other, array in enumerate(arrays))
        return len(arrays), gatherer.stats.operations

    assert on_gatherers(world_size, body) == [(world_size, 3 + 2 * len(roots))] * world_size


@pytest.mark.parametrize("obj", [None, {}, "", b"", (), [], False, 0, [None], "\ud800"])
@pytest.mark.plan(37)
def test_empty_objects_are_objects_like_any_other(obj: object) -> None:
    def body(gatherer: Gatherer) -> object:
        return [gatherer.all_gather(obj), gatherer.gather(obj, 1), gatherer.broadcast(obj), gatherer.run(lambda: obj)]

    both = [obj, obj]
    assert on_gatherers(2, body) == [[both, both if rank == 1 else None, obj, both] for rank in range(2)]


@pytest.mark.parametrize("frames", [[b""], [b"", b""], [b"a", b"", b"c"], [b"x"] * 100])
@pytest.mark.plan(37)
def test_payloads_of_empty_and_many_frames_arrive(frames: list[bytes]) -> None:
    def body(gatherer: Gatherer) -> object:
        return gatherer.all_gather(frames)

    assert on_gatherers(3, body, slot_nbytes=SLOT, codec=FramesCodec()) == [[frames] * 3] * 3


def test_frames_of_any_format_arrive_as_their_bytes() -> None:
    wide = memoryview(np.arange(4, dtype=np.int64).data)

    def body(gatherer: Gatherer) -> object:
        return gatherer.all_gather([wide, wide.toreadonly(), bytearray(b"rw")])

    arrived = [wide.tobytes(), wide.tobytes(), b"rw"]
    assert on_gatherers(2, body, codec=FramesCodec()) == [[arrived] * 2] * 2


@pytest.mark.parametrize(
    ("overflow", "more"),
    [("error", -1), ("error", 0), *(("second_round", more) for more in (-1, 0, 1, 100_000))],
)
@pytest.mark.plan(34)
def test_payloads_around_the_slot_arrive(overflow: str, more: int) -> None:
    full = [b"p" * (SLOT - HEADER_NBYTES - 64 + more)]
    assert (HEADER_NBYTES + payload_nbytes(full) <= SLOT) == (more <= 0)

    def body(gatherer: Gatherer) -> object:
        own = full if gatherer.rank == 1 else [b"s"]
        return gatherer.all_gather(own), gatherer.broadcast(own, src=1), gatherer.all_gather([b"next"])

    outcomes = on_gatherers(3, body, slot_nbytes=SLOT, overflow=overflow, codec=FramesCodec())
    assert outcomes == [([[b"s"], full, [b"s"]], full, [[b"next"]] * 3)] * 3


def test_in_a_broadcast_only_the_object_of_the_root_is_encoded() -> None:
    def body(gatherer: Gatherer) -> object:
        return gatherer.broadcast("yes" if gatherer.rank == 1 else threading.Lock(), src=1)

    assert on_gatherers(3, body) == ["yes"] * 3


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.plan(40, 42)
def test_results_alias_neither_the_callers_object_nor_a_reused_buffer(size: int) -> None:
    def body(gatherer: Gatherer) -> object:
        own = [bytearray([gatherer.rank]) * size]
        results = [gatherer.all_gather(own) for _ in range(4)]
        own[0][:] = b"\xff" * size
        for _ in range(3):
            gatherer.all_gather([b"\xee" * size])
        return results

    outcomes = on_gatherers(2, body, slot_nbytes=SLOT, codec=FramesCodec())
    assert outcomes == [[[[b"\0" * size], [b"\1" * size]]] * 4] * 2


def test_calls_from_several_threads_of_one_rank_are_serialised() -> None:
    def body(gatherer: Gatherer) -> list[list[tuple[int, int, int]]]:
        results: list[list[tuple[int, int, int]]] = []

        def work(worker: int) -> None:
            for number in range(20):
                results.append(gatherer.all_gather((gatherer.rank, worker, number)))

        workers = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        return results

    outcomes = on_gatherers(2, body)
    assert sorted(outcomes[0]) == sorted(outcomes[1])
    for rank in range(2):
        sent = sorted(result[rank] for result in outcomes[0])
        assert sent == [(rank, worker, number) for worker in range(3) for number in range(20)]


def test_a_close_from_another_thread_ends_the_operation() -> None:
    entered, is_over = threading.Event(), threading.Event()

    class Announces(ThreadsTransport):
        def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
            entered.set()
            return super().all_gather_slots(nbytes, timeout_s=timeout_s)

    def body(gatherer: Gatherer) -> object:
        if gatherer.rank == 1:
            return is_over.wait(20)

        def close_once_entered() -> None:
            assert entered.wait(20)
            gatherer.close()

        closer = threading.Thread(target=close_once_entered)
        closer.start()
        error = caught(gatherer.barrier)
        is_over.set()
        closer.join(20)
        return type(error)

    assert on_gatherers(2, body, Announces, timeout_s=60) == [AbortedError, True]
