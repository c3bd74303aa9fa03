"""Streams of items from every rank to one."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gather_core import DesyncError, Gatherer, GatherError, RemoteEncodeError
from gather_core.errors import ProtocolError
from gather_core.stream import StreamProgress
from gather_core.stream_chunks import Budget, Chunks, pack_chunk, unpack_chunk
from gather_transports.threads import ThreadsTransport
from thread_gatherers import FixedSlots, caught, on_gatherers

TRANSPORTS = {"elastic": ThreadsTransport, "fixed": FixedSlots}


def numbers(rank: int, count: int) -> Iterator[Any]:
    for number in range(count):
        yield np.full(1 + 37 * number, 1000 * rank + number)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dst", [0, 2])
@pytest.mark.parametrize("budget_nbytes", [1, 5000, 1 << 20])
def test_all_items_arrive_those_of_each_rank_in_order(transport: str, dst: int, budget_nbytes: int) -> None:
    counts = [0, 17, 40]

    def body(gatherer: Gatherer) -> object:
        items = numbers(gatherer.rank, counts[gatherer.rank])
        with gatherer.iter_gather(items, dst=dst, budget_nbytes=budget_nbytes) as pairs:
            arrived: dict[int, list[Any]] = {rank: [] for rank in range(3)}
            for rank, array in pairs:
                arrived[rank].append(array)
        for rank, arrays in arrived.items():
            for array, expected in zip(arrays, numbers(rank, counts[rank]), strict=False):
                np.testing.assert_array_equal(array, expected)
        return [len(arrays) for arrays in arrived.values()], gatherer.all_gather("next")

    outcomes = on_gatherers(3, body, TRANSPORTS[transport], slot_nbytes=2048)
    assert outcomes == [(counts if rank == dst else [0, 0, 0], ["next"] * 3) for rank in range(3)]


def test_a_stream_of_one_rank_and_of_nothing() -> None:
    with Gatherer() as gatherer:
        assert list(gatherer.iter_gather("abc")) == [(0, "a"), (0, "b"), (0, "c")]
        assert list(gatherer.iter_gather([])) == []


@pytest.mark.parametrize("how", ["close", "break", "with", "raise"])
def test_who_receives_can_end_it_early_on_every_rank(how: str) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(500)

    def take_three(gatherer: Gatherer) -> int:
        taken = 0
        pairs = gatherer.iter_gather(endless(), budget_nbytes=3000)
        if how == "with":
            with pairs:
                next(pairs, None)
                return 3
        for _ in pairs:
            taken += 1
            if taken == 3:
                break
        if how == "close":
            pairs.close()
            assert list(pairs) == []
        if how == "raise" and gatherer.rank == 0:
            raise KeyError("of the user")
        return taken

    def body(gatherer: Gatherer) -> object:
        try:
            take_three(gatherer)
        except KeyError:
            gc.collect()
        return gatherer.all_gather("next")

    assert on_gatherers(3, body) == [["next"] * 3] * 3


def test_other_calls_raise_while_it_runs() -> None:
    def body(gatherer: Gatherer) -> object:
        pairs = gatherer.iter_gather(range(5))
        refused = None
        if gatherer.rank == 0:
            next(pairs)
            calls: list[Callable[[], object]] = [
                lambda: gatherer.all_gather(0),
                lambda: gatherer.barrier(),
                lambda: gatherer.iter_gather([]),
                lambda: gatherer.all_gather_async(0).result(),
            ]
            refused = [type(caught(call)) for call in calls]
        rest = list(pairs)
        return refused, len(rest), gatherer.all_gather("next")

    outcomes = on_gatherers(2, body)
    assert outcomes == [([GatherError] * 4, 9, ["next"] * 2), (None, 0, ["next"] * 2)]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("what", ["iteration", "encoding"])
def test_items_that_raise_end_the_stream_on_every_rank(at: int, what: str) -> None:
    def items(rank: int) -> Iterator[Any]:
        yield from (bytes(400) for _ in range(10))
        if rank == at:
            if what == "encoding":
                yield lambda: None
            raise KeyError("no more")
        yield from (bytes(400) for _ in range(100))

    def body(gatherer: Gatherer) -> object:
        error = caught(lambda: list(gatherer.iter_gather(items(gatherer.rank), budget_nbytes=3000)))
        assert isinstance(error, RemoteEncodeError), error
        return list(error.failures), gatherer.all_gather("next")

    assert on_gatherers(3, body) == [([at], ["next"] * 3)] * 3


BAD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "dst": {"dst": 7},
    "items": {"items": 5},
    "budget 0": {"budget_nbytes": 0},
    "budget text": {"budget_nbytes": "1MiB"},
    "timeout": {"timeout_s": -1},
    "tag": {"tag": 5},
    "progress": {"progress": 5},
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
@pytest.mark.parametrize("bad_rank", [0, 1])
def test_bad_arguments_of_one_rank_are_an_error_on_every_rank(name: str, bad_rank: int) -> None:
    def body(gatherer: Gatherer) -> object:
        arguments: dict[str, Any] = {"items": [1, 2], "budget_nbytes": 100, "progress": lambda _: None}
        if gatherer.rank == bad_rank:
            arguments |= BAD_ARGUMENTS[name]
        error = caught(lambda: list(gatherer.iter_gather(**arguments)))
        assert isinstance(error, RemoteEncodeError), error
        return list(error.failures), gatherer.all_gather("next")

    assert on_gatherers(3, body) == [([bad_rank], ["next"] * 3)] * 3


def test_ranks_that_differ_in_dst_are_told_so() -> None:
    def body(gatherer: Gatherer) -> object:
        return type(caught(lambda: list(gatherer.iter_gather([1], dst=gatherer.rank))))

    assert on_gatherers(2, body) == [DesyncError] * 2


def test_progress_counts_what_came_and_what_went() -> None:
    def body(gatherer: Gatherer) -> object:
        seen: list[StreamProgress] = []
        list(gatherer.iter_gather([bytes(100)] * 10, budget_nbytes=2000, progress=seen.append))
        assert [each.num_rounds for each in seen] == list(range(1, len(seen) + 1))
        return seen[-1].num_items, seen[-1].nbytes >= 100 * seen[-1].num_items

    assert on_gatherers(2, body) == [(20, True), (10, True)]


def test_what_progress_raises_ends_the_stream_on_every_rank() -> None:
    def refuse(progress: StreamProgress) -> None:
        raise KeyError("enough")

    def body(gatherer: Gatherer) -> object:
        progress = refuse if gatherer.rank == 1 else None
        items = [bytes(1000)] * 10
        error = caught(lambda: list(gatherer.iter_gather(items, budget_nbytes=100, progress=progress)))
        assert isinstance(error, RemoteEncodeError)
        return list(error.failures)

    assert on_gatherers(2, body) == [[1]] * 2


def test_items_alias_nothing_of_the_callers() -> None:
    def body(gatherer: Gatherer) -> object:
        own = np.zeros(100)
        arrived = []
        for _, array in gatherer.iter_gather([own, own], budget_nbytes=100):
            arrived.append(array)
            own[:] += 1
        return [array is not own and not np.shares_memory(array, own) for array in arrived]

    outcomes = on_gatherers(2, body)
    assert outcomes == [[True] * 4, []]


def test_the_budget_admits_everybody_in_turn_and_a_larger_payload_alone() -> None:
    budget = Budget(100, 3)
    served = []
    for _ in range(3):
        budget.next_round()
        served.append(budget.admit([60, 300, 60]))
        assert [budget.has_sent(rank) for rank in range(3)] == [size > 0 for size in served[-1]]
    assert served == [[0, 300, 0], [60, 0, 0], [60, 0, 0]] or {tuple(each) for each in served} == {
        (0, 300, 0),
        (60, 0, 0),
        (0, 0, 60),
    }


def test_a_chunk_is_as_long_as_its_share_and_holds_one_item_at_least() -> None:
    chunks = Chunks(range(4), lambda item: [bytes(100 if item else 5000)], 500, 1 << 20)
    lengths = []
    while not chunks.is_at_end:
        lengths.append(len(chunks.current()))
        assert chunks.current() is chunks.current()
        chunks.was_sent()
    assert lengths == [1, 2, 1]


@pytest.mark.parametrize(
    "frames", [[], [b""], [b"\2"], [b"\0abc"], [b"\0\1\0\0\0"], [b"\0\1\0\0\0", b"", b""], [b"\0", b"x"]]
)
def test_a_chunk_that_cannot_be_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        unpack_chunk([memoryview(frame) for frame in frames])


def test_a_chunk_comes_out_as_it_went_in() -> None:
    items: list[Any] = [[b"a"], [b"b", b"c"], [b""]]
    for is_last in (False, True):
        frames = [memoryview(frame) for frame in pack_chunk(items, is_last=is_last)]
        out, last = unpack_chunk(frames)
        assert ([[bytes(frame) for frame in item] for item in out], last) == (items, is_last)
