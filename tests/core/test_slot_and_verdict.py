"""The wire format and the verdict: pure functions, whatever the bytes are."""

import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gather_core import DesyncError, LimitError, ProtocolError, RemoteEncodeError, SlotOverflowError
from gather_core.codec import Limits
from gather_core.memory import align
from gather_core.slot import (
    HEADER_NBYTES,
    Agreement,
    Failure,
    Kind,
    checksum_parts,
    payload_nbytes,
    payload_parts,
    read_frames,
    read_header,
    write_header,
    write_payload,
)
from gather_core.verdict import Terms, judge

SLOT_NBYTES = 4096
LIMITS = Limits(payload_nbytes=1 << 20, num_frames=1000, frame_nbytes=1 << 19)
frames_strategy = st.lists(st.binary(max_size=300), min_size=1, max_size=6)


def terms(world_size: int, *, elastic: bool = False, overflow_is_error: bool = False) -> Terms:
    return Terms(7, world_size, SLOT_NBYTES, LIMITS, elastic, overflow_is_error)


def agreement(world_size: int, *, kind: Kind = Kind.DATA, seq: int = 3, op: int = 5, group_id: int = 7) -> bytes:
    return Agreement(kind, group_id, seq, world_size, op).pack()


def slot_of(rank: int, frames: list[bytes], block: bytes) -> memoryview:
    nbytes = payload_nbytes(frames)
    slot = memoryview(bytearray(max(SLOT_NBYTES, HEADER_NBYTES + nbytes)))
    write_payload(slot[HEADER_NBYTES : HEADER_NBYTES + nbytes], frames)
    checksum = checksum_parts([slot[HEADER_NBYTES : HEADER_NBYTES + nbytes]])
    write_header(slot, nbytes, rank, len(frames), checksum, block)
    return slot


@given(st.binary(max_size=200))
def test_any_bytes_as_a_slot_are_a_header_or_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_header(memoryview(data))


@given(st.binary(min_size=48, max_size=48), st.integers(0, 2**64 - 1))
def test_a_hostile_header_with_a_right_checksum_allocates_nothing(rest: bytes, total_nbytes: int) -> None:
    slot = memoryview(bytearray(SLOT_NBYTES))
    slot[16:64] = rest
    write_header(slot, total_nbytes, int.from_bytes(rest[:4], "little"), 2**32 - 1, 0, rest[16:])
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        judge([slot], agreement(1), terms(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@given(frames_strategy)
def test_frames_survive_the_slot_and_the_parts_are_the_same_bytes(frames: list[bytes]) -> None:
    slot = slot_of(0, frames, agreement(1))
    header = judge([slot], agreement(1), terms(1)).headers[0]
    payload = slot[HEADER_NBYTES : HEADER_NBYTES + header.total_nbytes]
    assert [bytes(frame) for frame in read_frames(payload, header, LIMITS, frames_checked=True)] == frames
    assert b"".join(payload_parts(frames)) == bytes(payload)
    assert len(payload) == align(len(payload))


@given(frames_strategy, st.data())
def test_any_flipped_bit_is_found(frames: list[bytes], data: st.DataObject) -> None:
    slot = slot_of(0, frames, agreement(1))
    used = HEADER_NBYTES + payload_nbytes(frames)
    bit = data.draw(st.integers(0, 8 * used - 1))
    slot[bit // 8] ^= 1 << bit % 8

    def read() -> None:
        header = judge([slot], agreement(1), terms(1)).headers[0]
        read_frames(slot[HEADER_NBYTES:used], header, LIMITS, frames_checked=True)

    with pytest.raises(ProtocolError):
        read()


@given(st.binary(max_size=400), st.integers(0, 40))
def test_a_hostile_payload_is_frames_or_a_protocol_error(payload: bytes, num_frames: int) -> None:
    padded = payload + bytes(-len(payload) % 64)
    slot = memoryview(bytearray(HEADER_NBYTES) + bytearray(padded))
    write_header(slot, len(padded), 0, num_frames, checksum_parts([memoryview(padded)]), agreement(1))
    frames: list[memoryview] = []
    with suppress(ProtocolError, LimitError):
        header = judge([slot], agreement(1), terms(1)).headers[0]
        frames = read_frames(memoryview(padded), header, LIMITS, frames_checked=True)
    assert sum(map(len, frames)) <= len(padded)


def test_a_zeroed_slot_never_validates() -> None:
    with pytest.raises(ProtocolError, match="rank 0"):
        judge([memoryview(bytes(SLOT_NBYTES))], agreement(1), terms(1))


@pytest.mark.parametrize(
    ("changed", "error"),
    [({"seq": 2}, DesyncError), ({"group_id": 8}, DesyncError), ({"op": 6}, DesyncError)],
)
def test_stale_foreign_and_other_operations_are_found_by_every_rank(
    changed: dict[str, int], error: type[Exception]
) -> None:
    slots = [slot_of(0, [b"a"], agreement(2)), slot_of(1, [b"b"], agreement(2, **changed))]  # type: ignore[arg-type]
    for block in (agreement(2), agreement(2, **changed)):  # type: ignore[arg-type]
        with pytest.raises(error):
            judge(slots, block, terms(2))


def test_permuted_slots_are_found() -> None:
    slots = [slot_of(rank, [b"x"], agreement(2)) for rank in (1, 0)]
    with pytest.raises(DesyncError, match="in the place of rank 0"):
        judge(slots, agreement(2), terms(2))


@pytest.mark.parametrize("failing", [[1], [0, 2], [0, 1, 2]])
def test_error_slots_name_the_ranks_whoever_looks(failing: list[int]) -> None:
    slots = []
    for rank in range(3):
        if rank in failing:
            frames = Failure("encode", f"ValueError: {rank}", "trace").frames(SLOT_NBYTES - HEADER_NBYTES)
            slots.append(slot_of(rank, frames, agreement(3, kind=Kind.ERROR, op=0)))
        else:
            slots.append(slot_of(rank, [b"fine"], agreement(3)))
    for slot in slots:
        with pytest.raises(RemoteEncodeError) as caught:
            judge(slots, bytes(slot[32:64]), terms(3))
        assert list(caught.value.failures) == failing
        assert caught.value.failures[failing[0]] == f"ValueError: {failing[0]}\ntrace"


@given(st.text(max_size=50), st.integers(0, 200_000), st.integers(0, 200_000))
def test_a_failure_fits_in_the_smallest_slot(text: str, summary_times: int, traceback_times: int) -> None:
    failure = Failure("encode", text * (summary_times // 50), (text + "\ud800") * (traceback_times // 50))
    frames = failure.frames(1024 - HEADER_NBYTES)
    assert payload_nbytes(frames) <= 1024 - HEADER_NBYTES
    assert Failure.from_frames([memoryview(frame) for frame in frames]).phase == "encode"


def test_overflow_is_a_second_round_or_an_error_that_names_ranks_and_sizes() -> None:
    big = [b"x" * 10_000]
    slots = [slot_of(0, [b"small"], agreement(2)), slot_of(1, big, agreement(2))]
    assert judge(slots, agreement(2), terms(2)).nbytes_in_round_2 == [0, payload_nbytes(big)]
    assert judge(slots, agreement(2), terms(2, elastic=True)).nbytes_in_round_2 is None
    with pytest.raises(SlotOverflowError) as caught:
        judge(slots, agreement(2), terms(2, elastic=True, overflow_is_error=True))
    assert caught.value.nbytes == {1: HEADER_NBYTES + payload_nbytes(big)}
