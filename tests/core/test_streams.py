"""Streams of items from every rank to one."""

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gather_core import (
    AbortedError,
    ClosedError,
    DesyncError,
    Gatherer,
    GatherError,
    GroupBrokenError,
    RemoteEncodeError,
)
from gather_core.stream import Sender, StreamProgress, StreamRounds
from gather_core.stream_chunks import Chunks
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport
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


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_item_may_change_as_soon_as_the_next_one_is_asked_for(transport: str) -> None:
    def items() -> Iterator[Any]:
        buffer = np.zeros(20_000)
        for number in range(5):
            buffer[:] = number
            yield buffer
        buffer[:] = -1

    def body(gatherer: Gatherer) -> object:
        return [(rank, int(array[-1])) for rank, array in gatherer.iter_gather(items())]

    outcomes = on_gatherers(2, body, TRANSPORTS[transport], slot_nbytes=2048)
    assert outcomes == [[(rank, number) for rank in range(2) for number in range(5)], []]


def test_an_iterator_that_has_ended_is_not_asked_again() -> None:
    class Resumes:
        asked = 0

        def __iter__(self) -> "Resumes":
            return self

        def __next__(self) -> int:
            self.asked += 1
            if self.asked == 2:
                raise StopIteration
            return self.asked

    def body(gatherer: Gatherer) -> list[tuple[int, int]]:
        return list(gatherer.iter_gather(Resumes() if gatherer.rank else range(20), budget_nbytes=100))

    assert sorted(on_gatherers(2, body)[0]) == [*((0, number) for number in range(20)), (1, 1)]


@pytest.mark.parametrize("how", ["with", "close", "raise"])
def test_who_leaves_the_gatherer_in_the_middle_of_a_stream_lets_nobody_wait(how: str) -> None:
    def run_rank(member: ThreadRank) -> object:
        with Gatherer(transport=ThreadsTransport(), group=member, timeout_s=60) as gatherer:
            pairs = gatherer.iter_gather([bytes(1000)] * 20, budget_nbytes=3000)
            if gatherer.rank == 0:
                next(pairs)
                if how == "close":
                    gatherer.close()
                    assert type(caught(lambda: next(pairs))) is ClosedError
                if how == "raise":
                    raise KeyError("of the user")
        return list(pairs)

    receiver, sender = ThreadGroup(2).run(run_rank)
    expected = {"with": [], "close": AbortedError, "raise": AbortedError}[how]
    assert sender == expected if how == "with" else type(sender) is expected, sender
    assert type(receiver) is {"with": list, "close": list, "raise": KeyError}[how], receiver
    assert "iter_gather() was not at its end" in str(sender) or how != "close"


def test_a_function_given_to_run_is_not_called_while_a_stream_runs() -> None:
    called: list[int] = []
    with Gatherer() as gatherer:
        pairs = gatherer.iter_gather([1, 2])
        next(pairs)
        assert type(caught(lambda: gatherer.run(called.append, 1))) is GatherError
        assert type(caught(lambda: gatherer.all_gather_async(1))) is GatherError
        assert list(pairs) == [(0, 2)]
    assert called == []


def test_threads_may_share_a_stream() -> None:
    numbers_in_all = 400

    def body(gatherer: Gatherer) -> object:
        pairs = gatherer.iter_gather((np.full(600, n) for n in range(numbers_in_all)), budget_nbytes=20_000)
        taken: list[int] = []

        def work() -> None:
            for _, array in pairs:
                assert (array == array[0]).all()
                taken.append(int(array[0]))

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        return sorted(taken)

    assert on_gatherers(2, body) == [sorted([*range(numbers_in_all)] * 2), []]


def test_a_stream_that_begins_inside_an_operation_is_refused() -> None:
    class Reentrant:
        gatherer: Any = None

        def __reduce__(self) -> Any:
            self.gatherer.iter_gather([1])
            return (int, ())

    with Gatherer() as gatherer:
        Reentrant.gatherer = gatherer
        for error in (
            caught(lambda: gatherer.all_gather(Reentrant())),
            gatherer.all_gather_async(Reentrant()).exception(10),
            caught(lambda: list(gatherer.iter_gather([Reentrant()]))),
        ):
            assert "from inside another operation" in str(error)
        assert gatherer.all_gather(1) == [1]


def test_what_progress_does_with_the_gatherer_ends_the_stream_on_every_rank() -> None:
    def body(gatherer: Gatherer) -> object:
        report = (lambda _: gatherer.barrier()) if gatherer.rank == 0 else None
        error = caught(lambda: list(gatherer.iter_gather([bytes(1000)] * 5, budget_nbytes=100, progress=report)))
        assert isinstance(error, RemoteEncodeError), error
        return list(error.failures), gatherer.all_gather("next")

    assert on_gatherers(2, body) == [([0], ["next"] * 2)] * 2


def test_a_stream_is_no_reason_for_larger_slots() -> None:
    def body(gatherer: Gatherer) -> object:
        list(gatherer.iter_gather([bytes(1000)] * 20))
        return "second round" in gatherer.describe()

    assert on_gatherers(2, body, FixedSlots, slot_nbytes=2048) == [False] * 2


def test_a_chunk_that_never_came_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent_twice = Chunks.was_sent

    def skip(self: Chunks) -> Any:
        sent = sent_twice(self)
        if sent and self.number == 2:
            self.current()
            sent_twice(self)  # as where somebody between the ranks lets only the sender believe that it went
        return sent

    monkeypatch.setattr(Chunks, "was_sent", skip)

    def body(gatherer: Gatherer) -> object:
        items = [bytes(1000)] * 8 if gatherer.rank else []
        return str(caught(lambda: list(gatherer.iter_gather(items, budget_nbytes=100))))

    receiver, sender = on_gatherers(2, body)
    assert "payload of rank 1: chunk 3 of the stream instead of chunk 2" in str(receiver)
    assert "aborted" in str(sender)


def test_an_interrupt_while_an_item_is_decoded_breaks_the_group_as_in_any_operation() -> None:
    class Interrupts:
        def __reduce__(self) -> Any:
            return (interrupt, ())

    with Gatherer() as gatherer:
        pairs = gatherer.iter_gather([1, Interrupts(), 3])
        assert next(pairs) == (0, 1)
        with pytest.raises(KeyboardInterrupt):
            next(pairs)
        assert type(caught(lambda: next(pairs))) is GroupBrokenError
        assert type(caught(lambda: next(pairs))) is StopIteration
        assert type(caught(lambda: gatherer.all_gather(0))) is GroupBrokenError


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_before_the_first_round_is_told_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_and_be_interrupted(self: StreamRounds) -> None:
        begin(self)
        if self is senders[0]:
            raise KeyboardInterrupt

    def remember(rounds: StreamRounds, plan: Any) -> Sender:
        senders.append(rounds)
        return Sender(rounds, plan)

    senders: list[StreamRounds] = []
    begin = StreamRounds.begin
    monkeypatch.setattr("gather_core.gatherer.Sender", remember)
    monkeypatch.setattr(StreamRounds, "begin", begin_and_be_interrupted)

    def body(gatherer: Gatherer) -> object:
        if gatherer.rank == 0:
            while not senders:
                threading.Event().wait(0.01)
        return type(caught(lambda: list(gatherer.iter_gather([1]))))

    assert on_gatherers(2, body) == [AbortedError, KeyboardInterrupt]
