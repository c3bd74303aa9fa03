"""Rounds read in one go: what comes out is what comes out step by step, and what is refused there is left to it."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gather_core import Gatherer, GatherError, GroupBrokenError, Limits, ProtocolError, RemoteEncodeError, rounds
from gather_core.call import Received
from gather_core.memory import UNBOUNDED
from gather_core.seal import Seal
from gather_core.slot import (
    HEADER_NBYTES,
    Kind,
    checksum_parts,
    pack_agreement,
    pack_header,
    payload_nbytes,
)
from gather_core.slot_reader import SlotReader
from gather_core.verdict import Terms
from gather_transports.single import SingleTransport
from step_by_step import read_slots, write_slot

TERMS = Terms(7, 3, 16384, Limits(), UNBOUNDED, overflow_is_error=False, covered_below_nbytes=500)
AGREEMENT = pack_agreement(Kind.DATA, TERMS.group_id, 3, TERMS.world_size, 5)
FRAMES = st.lists(st.binary(max_size=300), max_size=5)
EVERYONE = range(TERMS.world_size)


def slot(frames: Sequence[bytes], rank: int, agreement: bytes = AGREEMENT) -> memoryview:
    return write_slot(frames, rank, agreement, TERMS.covered_below_nbytes)


def as_bytes(read: tuple[Received, int] | None) -> list[tuple[int, list[bytes]]] | None:
    return None if read is None else [(rank, list(map(bytes, frames))) for rank, frames in read[0]]


@given(st.tuples(FRAMES, FRAMES, FRAMES), st.sets(st.integers(0, 2)), st.binary(max_size=70))
def test_frames_of_the_wanted_ranks_come_in_rank_order_from_memory_of_any_length(
    sent: tuple[list[bytes], ...], wanted: set[int], rest: bytes
) -> None:
    slots = [memoryview(bytes(slot(frames, rank)) + rest) for rank, frames in enumerate(sent)]
    read = SlotReader(TERMS).read(slots, AGREEMENT, wanted)
    assert as_bytes(read) == [(rank, sent[rank]) for rank in sorted(wanted)]
    assert read is not None
    assert read[1] == max(map(payload_nbytes, sent))


@given(FRAMES, st.data())
def test_no_byte_that_is_checked_can_differ(frames: list[bytes], data: st.DataObject) -> None:
    damaged = bytearray(slot(frames, 1))
    nbytes = len(damaged) - HEADER_NBYTES
    end = len(damaged) if nbytes < TERMS.covered_below_nbytes else HEADER_NBYTES + 64
    damaged[data.draw(st.integers(0, end - 1))] ^= data.draw(st.integers(1, 255))
    slots = [slot([], 0), memoryview(damaged), slot([], 2)]
    assert SlotReader(TERMS).read(slots, AGREEMENT, EVERYONE) is None


@given(st.integers(0, 300), st.integers(0, 2))
def test_a_slot_that_is_cut_is_left_to_others(nbytes: int, rank: int) -> None:
    slots = [slot([b"x" * 150, b"y"], each) for each in EVERYONE]
    slots[rank] = slots[rank][:nbytes]
    assert SlotReader(TERMS).read(slots, AGREEMENT, EVERYONE) is None


_NUMBERS = st.one_of(st.integers(0, 400), st.sampled_from([2**32 - 1, 2**63, 2**64 - 1]))


@given(
    FRAMES,
    st.one_of(st.none(), _NUMBERS),
    st.one_of(st.none(), st.integers(0, 9), st.just(2**32 - 1)),
    st.lists(_NUMBERS, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_forged_lengths_with_right_checksums_are_read_only_as_step_by_step_reads_them(
    frames: list[bytes],
    total_nbytes: int | None,
    num_frames: int | None,
    lengths: list[int],
    is_tight: bool,
    is_fixed: bool,
) -> None:
    limits = Limits(payload_nbytes=256, num_frames=2, frame_nbytes=100) if is_tight else Limits()
    terms = replace(TERMS, limits=limits, round_1_nbytes=512 if is_fixed else UNBOUNDED, slot_nbytes=512)
    forged = memoryview(bytearray(slot(frames, 1)))
    if HEADER_NBYTES + 8 * len(lengths) <= len(forged):
        struct.pack_into(f"<{len(lengths)}Q", forged, HEADER_NBYTES, *lengths)
    total = len(forged) - HEADER_NBYTES if total_nbytes is None else total_nbytes
    count = len(frames) if num_frames is None else num_frames
    end = HEADER_NBYTES + min(total if total < 500 else (8 * count + 63) & -64, len(forged))
    forged[:HEADER_NBYTES] = pack_header(total, 1, count, checksum_parts([forged[HEADER_NBYTES:end]]), AGREEMENT)
    slots = [slot([b"0"], 0), forged.toreadonly(), slot([], 2)]
    read = SlotReader(terms).read(slots, AGREEMENT, EVERYONE)
    try:
        expected = read_slots(slots, AGREEMENT, terms)
    except GatherError:
        assert read is None
    else:
        assert as_bytes(read) == list(enumerate(expected))


@pytest.mark.parametrize(
    ("total_nbytes", "rank", "num_frames"),
    [(128, 2, 1), (100, 1, 1), (64, 1, 9), (192, 1, 1)],
    ids=["another's", "no whole lines", "no room for the table", "cut"],
)
def test_headers_are_verified_whose_payloads_nobody_wants(total_nbytes: int, rank: int, num_frames: int) -> None:
    forged = memoryview(bytearray(slot([b"x" * 50], 1)))
    slots = [slot([b"0"], 0), forged.toreadonly(), slot([], 2)]
    assert SlotReader(TERMS).read(slots, AGREEMENT, (0,)) is not None
    forged[:HEADER_NBYTES] = pack_header(total_nbytes, rank, num_frames, 0, AGREEMENT)
    assert SlotReader(TERMS).read(slots, AGREEMENT, (0,)) is None


def test_a_payload_that_is_not_wanted_is_not_read() -> None:
    damaged = bytearray(slot([b"x" * 100], 1))
    damaged[-1] ^= 1
    slots = [slot([b"0"], 0), memoryview(damaged), slot([], 2)]
    assert as_bytes(SlotReader(TERMS).read(slots, AGREEMENT, (0,))) == [(0, [b"0"])]


def test_failures_are_left_to_the_verdict_also_where_all_ranks_have_failed_alike() -> None:
    failed = pack_agreement(Kind.ERROR, TERMS.group_id, 3, TERMS.world_size, 0)
    slots = [slot([b"encode", b"no", b""], rank, failed) for rank in EVERYONE]
    assert SlotReader(TERMS).read(slots, failed, EVERYONE) is None
    assert SlotReader(TERMS).read(slots, AGREEMENT, EVERYONE) is None
    with Gatherer(transport="single") as gatherer, pytest.raises(RemoteEncodeError):
        gatherer.all_gather(lambda: None)


@pytest.mark.parametrize(
    "terms",
    [
        replace(TERMS, seal=Seal(bytes(32))),
        replace(TERMS, slot_nbytes=1024, round_1_nbytes=1024),
        replace(TERMS, slot_nbytes=1024, overflow_is_error=True),
        replace(TERMS, limits=Limits(payload_nbytes=1000)),
        replace(TERMS, limits=Limits(frame_nbytes=1000)),
        replace(TERMS, limits=Limits(num_frames=1)),
    ],
    ids=["sealed", "round 2", "overflow", "payload_nbytes", "frame_nbytes", "num_frames"],
)
def test_what_the_terms_do_not_let_through_is_left_to_others(terms: Terms) -> None:
    slots = [slot([b"x" * 1001, b""], rank) for rank in EVERYONE]
    assert SlotReader(TERMS).read(slots, AGREEMENT, EVERYONE) is not None
    assert SlotReader(terms).read(slots, AGREEMENT, EVERYONE) is None


def test_large_frames_of_writable_slots_are_given_away_and_small_ones_are_not() -> None:
    slots: list[Any] = [slot([b"x" * 50, b"y" * 5000], 0), slot([], 1), slot([], 2)]
    slots[0] = memoryview(bytearray(slots[0]))
    read = SlotReader(TERMS).read(slots, AGREEMENT, (0,))
    assert read is not None
    assert [frame.readonly for frame in read[0][0][1]] == [True, False]


class ForgetsItself(SingleTransport):
    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        super().all_gather_slots(nbytes, timeout_s=timeout_s)
        return []


@pytest.mark.parametrize("nbytes", [10, 100_000])
def test_a_transport_that_returns_too_few_slots_breaks_the_group_and_says_so(nbytes: int) -> None:
    with Gatherer(transport=ForgetsItself()) as gatherer:
        with pytest.raises(ProtocolError, match="0 slots for 1 ranks"):
            gatherer.all_gather(bytes(nbytes))
        with pytest.raises(GroupBrokenError):
            gatherer.all_gather(None)


def test_healthy_rounds_of_any_length_are_not_judged_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "judge", None)
    with Gatherer(codec="raw", transport="single", slot_nbytes=1024) as gatherer:
        for nbytes in (10, 900, 100_000, 5000):
            assert gatherer.all_gather(bytes(nbytes)) == [bytes(nbytes)]
        stats = gatherer.stats
        assert (stats.operations, stats.second_rounds) == (4, 0)
        assert 100_000 + HEADER_NBYTES < stats.largest_slot_nbytes < 100_000 + 5 * HEADER_NBYTES
