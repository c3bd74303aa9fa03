"""The chunks that streams travel in, and the budget that admits them."""

from typing import Any

import pytest

from gather_core.errors import ProtocolError
from gather_core.stream_chunks import Budget, Chunks, pack_chunk, unpack_chunk


def test_the_budget_admits_everybody_in_turn_and_a_larger_payload_alone() -> None:
    budget = Budget(100, 3)
    served = []
    for _ in range(3):
        budget.next_round()
        served.append(budget.admit([60, 300, 60]))
        assert [budget.has_sent(rank) for rank in range(3)] == [size > 0 for size in served[-1]]
    assert served == [[0, 300, 0], [0, 0, 60], [60, 0, 0]]


def test_a_chunk_is_as_long_as_its_share_and_holds_one_item_at_least() -> None:
    chunks = Chunks(range(4), lambda item: [bytes(100 if item else 5000)], 500, 1 << 20)
    lengths = []
    while not chunks.is_at_end:
        lengths.append(len(chunks.current()))
        assert chunks.current() is chunks.current()
        chunks.was_sent()
    assert lengths == [1, 2, 1]


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\0abc"],
        [b"\2" + bytes(8)],
        [bytes(9) + b"abc"],
        [bytes(9) + b"\1\0\0\0"],
        [bytes(9) + b"\1\0\0\0", b"", b""],
        [bytes(9), b"x"],
        [b"\0\1" + bytes(7)],
    ],
)
def test_a_chunk_that_cannot_be_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        unpack_chunk([memoryview(frame) for frame in frames], 0)


def test_a_chunk_comes_out_as_it_went_in() -> None:
    items: list[Any] = [[b"a"], [b"b", b"c"], [b""]]
    for is_last in (False, True):
        frames = [memoryview(frame) for frame in pack_chunk(items, 7, is_last=is_last)]
        out, last = unpack_chunk(frames, 7)
        assert ([[bytes(frame) for frame in item] for item in out], last) == (items, is_last)


def test_a_chunk_does_not_wait_for_many_slow_items() -> None:
    ticks = iter([0.0, 0.05, 0.11, 0.2, 0.21, 9.0, 9.0])
    chunks = Chunks(iter("abcd"), lambda item: [item.encode()], 1 << 20, 1 << 20, lambda: next(ticks))
    sent = []
    while not chunks.is_at_end:
        chunks.current()
        sent.append(chunks.was_sent())
    assert sent == [[[b"a"], [b"b"]], [[b"c"], [b"d"]], []]
