"""Areas on loan: results are what peers have written, without a copy, and stay what they were."""

import gc
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from gather_core.errors import TransportError
from gather_core.memory import UNBOUNDED
from gather_transports import shm_control, shm_loans
from gather_transports.owned_descriptor import Descriptor
from gather_transports.shm_control import NUM_AREAS, ControlBlock, Extent, create_control
from loan_model import LoanModel
from loan_pair import MIB, Pair
from shm_ranks import new_file

pytest_plugins = ["loan_fixture"]


@pytest.mark.parametrize(("num_exchanges", "num_areas"), [(5, 3), (4, 4)])
@pytest.mark.fault(53)
def test_nothing_is_written_over_that_somebody_reads_or_has_borrowed(num_exchanges: int, num_areas: int) -> None:
    assert LoanModel(2, num_exchanges, num_areas=num_areas).fault() == ""


def test_two_areas_are_to_be_left_for_payloads_that_are_not_lent() -> None:
    assert LoanModel(2, 4, never_lent=1).fault() == "rank 1 has no free area"


def test_what_is_not_lent_is_read_until_the_next_exchange() -> None:
    assert "rank 0 read something else than exchange" in LoanModel(2, 3, knows_being_read=False).fault()


def test_a_loan_that_is_returned_while_it_is_read_is_found() -> None:
    assert "writes over what rank 1 has borrowed" in LoanModel(2, 3, returns_early=True).fault()


def allocated_nbytes(file: Descriptor) -> int:
    with file as fd:
        return os.fstat(fd).st_blocks * 512


def test_where_a_payload_is_goes_into_one_number() -> None:
    for extent in (Extent(1, 0, lent=False), Extent(1 << 40, NUM_AREAS - 1, lent=True), Extent(5, 3, lent=False)):
        assert Extent.unpack(extent.pack()) == extent
        assert 0 < extent.pack() < UNBOUNDED


def test_what_is_borrowed_can_be_written_and_nobody_else_sees_it(pair: Pair) -> None:
    extent = pair.hand_over(7)
    first, second = pair.borrow(extent), pair.borrow(extent)
    first[:5] = b"other"
    assert bytes(first[:6]) == b"other\7"
    assert bytes(second[:6]) == bytes(pair.own.written(extent)[:6]) == b"\7" * 6


def make_array(view: memoryview) -> Any:
    return np.frombuffer(view[64:], np.int64)[10:]


def make_tensor(view: memoryview) -> Any:
    return torch.frombuffer(view[64:], dtype=torch.int64)[10:].view(torch.int32)


def make_slice(view: memoryview) -> Any:
    return view[5:]


@pytest.mark.parametrize("make", [make_array, make_tensor, make_slice])
def test_a_loan_ends_with_the_last_that_refers_to_it(pair: Pair, make: Any) -> None:
    extent = pair.hand_over(1)
    kept = make(pair.borrow(extent))
    gc.collect()
    assert pair.lender.is_lent(extent.area)
    del kept
    assert not pair.lender.is_lent(extent.area)


def test_what_nobody_keeps_comes_back_at_once(pair: Pair) -> None:
    extent = pair.hand_over(1)
    assert bytes(pair.borrow(extent)[:2]) == b"\1\1"
    assert not pair.lender.is_lent(extent.area)


def test_the_area_is_written_again_when_it_has_been_returned_and_never_before(pair: Pair) -> None:
    extents = [pair.hand_over(number) for number in range(3)]
    kept = [pair.borrow(extent) for extent in extents]
    assert len({extent.area for extent in extents}) == 3
    del kept[1]
    assert pair.hand_over(9).area == extents[1].area
    assert [view[-1] for view in kept] == [0, 2]


def test_when_much_is_lent_the_rest_is_copied_until_some_of_it_comes_back(pair: Pair) -> None:
    kept = [pair.borrow(pair.hand_over(number)) for number in range(NUM_AREAS - 2)]
    for number in range(20):
        extent = pair.hand_over(100 + number)
        assert not extent.lent
        assert pair.peer.written(extent)[-1] == 100 + number
    assert [view[-1] for view in kept] == list(range(NUM_AREAS - 2))
    del kept[3]
    assert pair.hand_over(8).lent
    assert not pair.hand_over(9).lent


def test_an_area_that_is_far_too_long_is_not_lent(pair: Pair, file: Descriptor) -> None:
    pair.borrow(pair.hand_over(1, 64 * MIB))
    kept = pair.borrow(pair.hand_over(2, MIB))
    for _ in range(40):
        pair.own.rest()
    assert allocated_nbytes(file) < 4 * MIB
    assert kept[-1] == 2


def test_areas_that_are_not_used_any_more_shrink_while_others_are(pair: Pair, file: Descriptor) -> None:
    kept = [pair.borrow(pair.hand_over(number, 8 * MIB)) for number in range(8)]
    assert allocated_nbytes(file) >= 64 * MIB
    del kept
    for number in range(40):
        pair.borrow(pair.hand_over(number, 6 * MIB))
    assert allocated_nbytes(file) < 20 * MIB


def test_small_payloads_and_those_that_may_not_be_lent_are_copied(file: Descriptor) -> None:
    with new_file() as fd:
        pair = Pair(file, fd, lends=False)
        assert not pair.hand_over(1, 20 * MIB).lent
        pair.own.lender = pair.lender
        assert pair.hand_over(1, MIB).lent
        assert not pair.hand_over(1, MIB - 1).lent
        pair.own.large_slot(MIB)
        assert not pair.own.hand_over(MIB, may_lend=False).lent


def test_what_is_lent_does_not_shrink_and_what_came_back_does(pair: Pair, file: Descriptor) -> None:
    kept = pair.borrow(pair.hand_over(5, 8 * MIB))
    for _ in range(3):
        pair.borrow(pair.hand_over(6, 8 * MIB))
    for small in range(2):
        for _ in range(40):
            pair.own.rest()
            pair.own.hand_over_slot()
        if not small:
            assert 8 * MIB <= allocated_nbytes(file) < 12 * MIB
            assert kept[0] == kept[-1] == 5
            del kept
    assert allocated_nbytes(file) <= 2 * MIB + 65536
    assert not pair.own.is_oversized


def test_giving_up_leaves_what_is_lent_or_may_be_read(pair: Pair, file: Descriptor) -> None:
    kept = pair.borrow(pair.hand_over(1, 8 * MIB))
    for number in (2, 3):
        pair.borrow(pair.hand_over(number, 8 * MIB))  # one area, again
    read = [pair.peer.written(pair.hand_over(number, MIB - 1)) for number in (4, 5)]
    before = allocated_nbytes(file)
    pair.own.give_up()
    assert allocated_nbytes(file) == before, "the one that was returned holds the last payload but one"
    assert (kept[-1], read[0][-1], read[1][-1]) == (1, 4, 5)
    with pytest.raises(TransportError, match="the transport is closed"):
        pair.own.large_slot(5000)


def test_giving_up_gives_back_what_nobody_reads(pair: Pair, file: Descriptor) -> None:
    kept = [pair.borrow(pair.hand_over(number, 8 * MIB)) for number in range(4)]
    del kept[1:3]
    pair.hand_over(5, 8 * MIB)  # the next place
    pair.own.give_up()
    assert 24 * MIB <= allocated_nbytes(file) < 25 * MIB
    assert [view[-1] for view in kept] == [0, 3]


def test_giving_up_while_the_region_grows_does_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.borrow(pair.hand_over(1, 8 * MIB))
    allocate = pair.own._allocator.allocate

    def give_up_in_between(start: int, nbytes: int) -> None:
        pair.own.give_up()
        allocate(start, nbytes)

    monkeypatch.setattr(pair.own._allocator, "allocate", give_up_in_between)
    assert pair.peer.written(pair.hand_over(2, 9 * MIB)._replace(lent=False))[-1] == 2


def test_what_another_thread_gives_back_is_never_what_is_being_lent(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend = pair.lender.lend

    def lend_late(area: int) -> None:
        pair.own.give_up()
        lend(area)

    monkeypatch.setattr(pair.lender, "lend", lend_late)
    assert bytes(pair.borrow(pair.hand_over(7))[-2:]) == b"\7\7"


def test_areas_that_take_turns_are_kept_while_all_others_are_lent(
    file: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_file() as fd:
        pair = Pair(file, fd, keep_nbytes=4 * MIB)
    kept = [pair.borrow(pair.hand_over(number)) for number in range(NUM_AREAS - 2)]
    assert not any(pair.hand_over(number).lent for number in range(2))
    allocate, allocated = pair.own._allocator.allocate, []

    def counted(start: int, nbytes: int) -> None:
        allocated.append(nbytes)
        allocate(start, nbytes)

    monkeypatch.setattr(pair.own._allocator, "allocate", counted)
    assert not any(pair.hand_over(number).lent for number in range(100))
    assert allocated == []
    assert [view[-1] for view in kept] == [*range(NUM_AREAS - 2)]


def test_what_other_areas_hold_that_nobody_reads_makes_room(
    pair: Pair, file: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [pair.borrow(pair.hand_over(number, 8 * MIB)) for number in range(4)]
    del kept[1:]
    fallocate = os.posix_fallocate

    def full_from_40_mib_on(fd: int, start: int, nbytes: int) -> None:
        if allocated_nbytes(file) + nbytes > 40 * MIB:
            raise OSError(28, "No space left on device")
        fallocate(fd, start, nbytes)

    monkeypatch.setattr(os, "posix_fallocate", full_from_40_mib_on)
    assert pair.borrow(pair.hand_over(9, 28 * MIB))[-1] == 9
    with pytest.raises(MemoryError, match="No space left on device"):
        pair.hand_over(10, 36 * MIB)
    assert kept[0][-1] == 0


def test_a_finalizer_of_a_cycle_still_finds_what_was_borrowed(pair: Pair) -> None:
    seen: list[tuple[int, bool]] = []
    extent = pair.hand_over(3)

    class Cycle:
        def __init__(self) -> None:
            self.itself = self
            self.array = make_array(pair.borrow(extent))

        def __del__(self) -> None:
            seen.append((int(self.array.view(np.uint8)[-1]), pair.lender.is_lent(extent.area)))

    Cycle()
    gc.collect()
    assert seen == [(3, True)]
    assert not pair.lender.is_lent(extent.area)


def test_returning_runs_no_python(pair: Pair) -> None:
    called: list[str] = []

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    extent = pair.hand_over(3)
    kept = [pair.borrow(extent)]
    sys.setprofile(look)
    try:
        kept.clear()
    finally:
        sys.setprofile(None)
    assert not pair.lender.is_lent(extent.area)
    assert called == [], "a handler that raises inside a finalizer raises nothing"


def num_mappings(file: Descriptor) -> int:
    with file as fd:
        inode = f" {os.fstat(fd).st_ino} "
    return sum(inode in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_nothing_is_left_of_thousands_of_loans(pair: Pair, file: Descriptor) -> None:
    before = num_mappings(file)
    kept: list[memoryview] = []
    for number in range(3000):
        extent = pair.hand_over(number % 200, MIB)
        if extent.lent:
            kept.append(pair.borrow(extent))
        if number % 7 == 0:
            del kept[:: 1 + number % 3]
    kept.clear()
    assert num_mappings(file) <= before + NUM_AREAS
    assert not any(pair.lender.is_lent(area) for area in range(NUM_AREAS))
    pair.borrow(pair.hand_over(1))
    assert len(shm_loans._loans) <= 2, "those that are over are forgotten with the next"


def test_the_control_block_has_room_for_all_tokens() -> None:
    with new_file() as fd:
        create_control(fd, 3)
        ranks = [ControlBlock(fd, rank, 3) for rank in range(3)]
        tokens = {ranks[0].loan_token(writer, area).value for writer in range(3) for area in range(NUM_AREAS)}
        tokens |= {ranks[0].token(writer, reader).value for writer in range(3) for reader in range(3)}
        assert len(tokens) == 3 * NUM_AREAS + 9
        assert os.fstat(fd).st_size == shm_control.control_nbytes(3)
