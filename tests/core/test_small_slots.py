"""The common case in one go: it writes the same bytes as step by step, and takes nothing that is refused there."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gather_core import Gatherer, GatherError, Limits
from gather_core.slot import (
    HEADER_NBYTES,
    Kind,
    checksum_parts,
    pack_agreement,
    pack_header,
)
from gather_core.small_slots import SMALL_UP_TO_NBYTES, longest_small_frame, pack_small_slot, read_small_slots
from gather_core.verdict import Terms
from step_by_step import read_slots, write_slot

TERMS = Terms(7, 2, 16384, Limits(), 16384, overflow_is_error=False)
AGREEMENT = pack_agreement(Kind.DATA, TERMS.group_id, 3, TERMS.world_size, 5)
FRAME = st.binary(max_size=300)


def read(slots: Sequence[memoryview], agreement: bytes = AGREEMENT) -> list[memoryview] | None:
    """On rank 0, whose slot is as it was written."""
    return read_small_slots(slots, agreement, SMALL_UP_TO_NBYTES, 0, bytes(slots[0]))


@given(st.binary(max_size=SMALL_UP_TO_NBYTES), st.integers(0, 2**32 - 1))
def test_the_bytes_are_those_of_a_slot_written_step_by_step(frame: bytes, rank: int) -> None:
    assert pack_small_slot(frame, rank, AGREEMENT) == write_slot([frame], rank, AGREEMENT)


@given(FRAME, FRAME)
def test_healthy_slots_are_taken_from_memory_of_any_length(first: bytes, second: bytes) -> None:
    slots = [memoryview(pack_small_slot(first, 0, AGREEMENT)), memoryview(pack_small_slot(second, 1, AGREEMENT) + b"x")]
    frames = read(slots)
    assert frames is not None
    assert list(map(bytes, frames)) == [first, second]


@given(FRAME, st.data())
def test_no_byte_can_differ(frame: bytes, data: st.DataObject) -> None:
    slot = bytearray(pack_small_slot(frame, 1, AGREEMENT))
    at = data.draw(st.integers(0, len(slot) - 1))
    slot[at] ^= data.draw(st.integers(1, 255))
    slots = [memoryview(pack_small_slot(b"", 0, AGREEMENT)), memoryview(slot)]
    assert read(slots) is None


@given(FRAME, st.integers(0, 600))
def test_a_slot_that_is_cut_is_left_to_others(frame: bytes, nbytes: int) -> None:
    own, other = pack_small_slot(frame, 0, AGREEMENT), pack_small_slot(frame, 1, AGREEMENT)
    assume(nbytes < len(own))
    assert read([memoryview(own), memoryview(other)[:nbytes]]) is None
    assert read_small_slots([memoryview(own)[:nbytes]], AGREEMENT, SMALL_UP_TO_NBYTES, 0, own) is None


@given(FRAME, st.data())
def test_no_byte_of_this_ranks_own_slot_can_come_back_different(frame: bytes, data: st.DataObject) -> None:
    own = pack_small_slot(frame, 1, AGREEMENT)
    returned = bytearray(own + b"x")
    slots = [memoryview(pack_small_slot(b"", 0, AGREEMENT)), memoryview(returned)]
    frames = read_small_slots(slots, AGREEMENT, SMALL_UP_TO_NBYTES, 1, own)
    assert frames is not None
    assert bytes(frames[1]) == frame
    returned[data.draw(st.integers(0, len(own) - 1))] ^= data.draw(st.integers(1, 255))
    assert read_small_slots(slots, AGREEMENT, SMALL_UP_TO_NBYTES, 1, own) is None


def test_where_this_rank_sends_something_else_all_is_left_to_others() -> None:
    slots = [memoryview(pack_small_slot(b"", rank, AGREEMENT)) for rank in range(2)]
    assert read_small_slots(slots, AGREEMENT, SMALL_UP_TO_NBYTES, 0, b"") is None


@pytest.mark.parametrize("frames", [[], [b"a", b"b"], [bytes(SMALL_UP_TO_NBYTES + 1)]], ids=["none", "two", "large"])
def test_what_is_not_one_small_frame_is_left_to_others(frames: list[bytes]) -> None:
    slots = [memoryview(pack_small_slot(b"", 0, AGREEMENT)), write_slot(frames, 1, AGREEMENT)]
    assert read(slots) is None


def test_an_error_of_another_rank_is_left_to_others() -> None:
    agreement = pack_agreement(Kind.ERROR, TERMS.group_id, 3, TERMS.world_size, 5)
    failed = memoryview(pack_small_slot(b"", 1, agreement))
    assert read([memoryview(pack_small_slot(b"", 0, AGREEMENT)), failed]) is None


_NUMBERS = st.one_of(st.integers(0, 300), st.sampled_from([2**63, 2**64 - 1]))


@given(FRAME, _NUMBERS, st.integers(0, 3), _NUMBERS, st.sampled_from([0, 1]))
def test_forged_lengths_with_right_checksums_are_taken_only_where_step_by_step_takes_them(
    frame: bytes, total_nbytes: int, num_frames: int, length: int, rank: int
) -> None:
    slot = bytearray(pack_small_slot(frame, 1, AGREEMENT))
    struct.pack_into("<Q", slot, HEADER_NBYTES, length)
    view = memoryview(slot)
    payload = view[HEADER_NBYTES : HEADER_NBYTES + min(total_nbytes, len(slot))]
    view[:HEADER_NBYTES] = pack_header(total_nbytes, rank, num_frames, checksum_parts([payload]), AGREEMENT)
    slots = [memoryview(pack_small_slot(b"", 0, AGREEMENT)), view.toreadonly()]
    found = read(slots)
    if found is not None:
        assert [[bytes(frame)] for frame in found] == read_slots(slots, AGREEMENT, TERMS)


LIMITED = [
    replace(TERMS, slot_nbytes=1024, round_1_nbytes=1024),
    replace(TERMS, covered_below_nbytes=0),
    replace(TERMS, covered_below_nbytes=300),
    *(replace(TERMS, limits=Limits(**limit)) for limit in ({"payload_nbytes": 300}, {"frame_nbytes": 70})),
    *(replace(TERMS, limits=Limits(**limit)) for limit in ({"num_frames": 1}, {"payload_nbytes": 10})),
]


@pytest.mark.parametrize("terms", [TERMS, *LIMITED])
def test_frames_up_to_the_longest_fit_the_slot_and_all_limits(terms: Terms) -> None:
    longest = longest_small_frame(terms)
    assert longest <= SMALL_UP_TO_NBYTES
    if longest >= 0:
        slot = pack_small_slot(bytes(longest), 0, AGREEMENT)
        assert len(slot) <= terms.slot_nbytes
        assert len(slot) - HEADER_NBYTES < terms.covered_below_nbytes
        slots = [memoryview(slot), memoryview(pack_small_slot(b"", 1, AGREEMENT))]
        assert read_slots(slots, AGREEMENT, terms) == [[bytes(longest)], [b""]]
    assert (longest >= 0) == (terms.limits.payload_nbytes > 64 and terms.covered_below_nbytes > 64)


@pytest.mark.parametrize("limits", [{"payload_nbytes": 300}, {"frame_nbytes": 70}])
def test_limits_hold_for_small_objects_too(limits: dict[str, Any]) -> None:
    with Gatherer(codec="raw", transport="single", limits=Limits(**limits)) as gatherer:
        with pytest.raises(GatherError, match=next(iter(limits))):
            gatherer.all_gather(bytes(2000))


def test_objects_on_both_sides_of_the_border_are_exact_and_counted() -> None:
    with Gatherer(codec="raw", transport="single") as gatherer:
        for nbytes in range(SMALL_UP_TO_NBYTES - 200, SMALL_UP_TO_NBYTES + 200):
            assert gatherer.all_gather(bytes([nbytes % 256]) * nbytes) == [bytes([nbytes % 256]) * nbytes]
        assert gatherer.stats.operations == 400
        assert gatherer.stats.sent_nbytes > 400 * SMALL_UP_TO_NBYTES
