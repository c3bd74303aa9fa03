"""The wire format: what is written can be read, and what is damaged is refused."""

import struct
import tracemalloc
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gather_core import LimitError, Limits, ProtocolError
from gather_core.errors import printable
from gather_core.memory import aligned_buffer
from gather_core.slot import (
    HEADER_NBYTES,
    MAGIC,
    Agreement,
    Failure,
    Header,
    Kind,
    check_lengths,
    checksum_parts,
    covered_below_nbytes,
    pack_header,
    parse_agreement,
    payload_nbytes,
    payload_parts,
    read_frames,
    read_header,
    write_payload,
)

LIMITS = Limits()
AGREEMENT = Agreement(Kind.DATA, 0x0123456789ABCDEF, 7, 3, 0xDEADBEEF).pack()
FRAMES = st.lists(st.binary(max_size=200), max_size=40)
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


def slot_of(
    frames: Sequence[bytes | bytearray | memoryview], *, rank: int = 0, agreement: bytes = AGREEMENT
) -> bytearray:
    nbytes = payload_nbytes(frames)
    slot = bytearray(b"\xaa" * (HEADER_NBYTES + nbytes))
    view = memoryview(slot)
    write_payload(view[HEADER_NBYTES:], frames)
    view[:HEADER_NBYTES] = pack_header(nbytes, rank, len(frames), checksum_parts([view[HEADER_NBYTES:]]), agreement)
    return slot


def read_slot(slot: bytes | bytearray, limits: Limits = LIMITS, *, frames_checked: bool = True) -> list[bytes]:
    view = memoryview(slot).toreadonly()
    header = read_header(view)
    parse_agreement(header.agreement)
    check_lengths(header, limits)
    payload = view[HEADER_NBYTES : HEADER_NBYTES + header.total_nbytes]
    if len(payload) != header.total_nbytes:
        raise ProtocolError("the payload is not all here")
    return [bytes(frame) for frame in read_frames(payload, header, limits, frames_checked=frames_checked)]


def peak_nbytes(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(FRAMES)
@example([])
@example([b""])
@example([b"x" * 63, b"x" * 64, b"x" * 65])
def test_frames_survive_the_round_trip(frames: list[bytes]) -> None:
    assert read_slot(slot_of(frames)) == frames


@given(FRAMES)
def test_the_parts_of_a_payload_joined_are_the_payload(frames: list[bytes]) -> None:
    written = bytearray(payload_nbytes(frames))
    write_payload(memoryview(written), frames)
    parts = payload_parts(frames)
    assert b"".join(parts) == written
    assert checksum_parts(parts) == checksum_parts([memoryview(written)])


@given(FRAMES)
def test_payloads_and_frames_start_at_multiples_of_64_and_padding_is_zero(frames: list[bytes]) -> None:
    payload = bytearray(b"\xff" * payload_nbytes(frames))
    write_payload(memoryview(payload), frames)
    assert len(payload) % 64 == 0
    padding = bytearray(payload)
    position = -(-8 * len(frames) // 64) * 64
    padding[: 8 * len(frames)] = bytes(8 * len(frames))
    for frame in frames:
        assert position % 64 == 0
        assert payload[position : position + len(frame)] == frame
        padding[position : position + len(frame)] = bytes(len(frame))
        position += -(-len(frame) // 64) * 64
    assert not any(padding)


def test_frames_are_views_of_the_payload_and_not_copies() -> None:
    large = bytes(1 << 20)
    payload = aligned_buffer(payload_nbytes([large]))
    write_payload(payload, [large])
    header = Header(len(payload), 0, 1, checksum_parts([payload]), AGREEMENT)
    assert peak_nbytes(lambda: read_frames(payload, header, Limits(), frames_checked=True)) < 50_000
    assert peak_nbytes(lambda: payload_parts([large])) < 50_000


@given(U64, U32, U32, U64)
def test_headers_survive_the_round_trip(total_nbytes: int, rank: int, num_frames: int, checksum: int) -> None:
    slot = memoryview(bytearray(HEADER_NBYTES))
    slot[:HEADER_NBYTES] = pack_header(total_nbytes, rank, num_frames, checksum, AGREEMENT)
    assert read_header(slot) == Header(total_nbytes, rank, num_frames, checksum, AGREEMENT)


@given(st.sampled_from(Kind), U64, U64, U32, U32)
def test_agreements_survive_the_round_trip(kind: Kind, group_id: int, seq: int, world_size: int, op: int) -> None:
    agreement = Agreement(kind, group_id, seq, world_size, op)
    block = agreement.pack()
    assert len(block) == 32
    assert block.startswith(MAGIC)
    assert parse_agreement(block) == agreement


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(63))
@example(bytes(64))
@example(bytes(16384))
def test_bytes_that_no_rank_wrote_are_a_protocol_error_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_header(memoryview(noise))


@given(st.binary(min_size=32, max_size=32))
@example(bytes(32))
def test_an_agreement_block_is_read_or_refused(block: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_agreement(block)


@given(U64, U32, U64, st.binary(max_size=400), st.booleans())
@example(2**64 - 1, 2**32 - 1, 0, b"", True)
@example(2**63, 1, 0, b"", False)
@example(1 << 36, 1 << 20, 0, b"", False)
def test_hostile_lengths_are_refused_before_anything_is_allocated(
    total_nbytes: int, num_frames: int, checksum: int, rest: bytes, frames_checked: bool
) -> None:
    slot = memoryview(bytearray(HEADER_NBYTES) + rest)
    slot[:HEADER_NBYTES] = pack_header(total_nbytes, 0, num_frames, checksum, AGREEMENT)

    def read() -> None:
        with pytest.raises((ProtocolError, LimitError)):
            read_slot(bytearray(slot), frames_checked=frames_checked)

    assert peak_nbytes(read) < 1_000_000


@given(st.lists(U64, min_size=1, max_size=8), st.integers(0, 10))
@settings(max_examples=200)
def test_a_hostile_frame_table_with_a_right_checksum_is_refused(lengths: list[int], blocks: int) -> None:
    table = struct.pack(f"<{len(lengths)}Q", *lengths)
    payload = memoryview(table.ljust(64, b"\0") + bytes(64 * blocks))
    header = Header(len(payload), 0, len(lengths), checksum_parts([payload]), AGREEMENT)
    check_lengths(header, Limits())
    try:
        frames = read_frames(payload, header, Limits(frame_nbytes=500), frames_checked=True)
    except (ProtocolError, LimitError):
        return
    assert [len(frame) for frame in frames] == lengths
    assert sum(-(-length // 64) for length in lengths) == blocks


def test_every_flipped_bit_of_header_table_and_checked_frames_is_caught() -> None:
    slot = slot_of([b"head", b"x" * 70, b""], rank=2)
    for bit in range(8 * len(slot)):
        damaged = bytearray(slot)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            read_slot(damaged)


def test_without_checked_frames_every_flipped_bit_of_header_and_table_is_caught() -> None:
    frames = [b"head", b"x" * 70]
    nbytes = payload_nbytes(frames)
    slot = memoryview(bytearray(HEADER_NBYTES + nbytes))
    write_payload(slot[HEADER_NBYTES:], frames)
    slot[:HEADER_NBYTES] = pack_header(nbytes, 0, 2, checksum_parts([slot[64:128]]), AGREEMENT)
    assert read_slot(bytearray(slot), frames_checked=False) == frames
    for bit in range(8 * 128):
        damaged = bytearray(slot)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            read_slot(damaged, frames_checked=False)


def test_padding_is_part_of_what_is_checked_where_frames_are_and_else_not_looked_at() -> None:
    frames = [b"head", b"x" * 70]
    payload = memoryview(bytearray(payload_nbytes(frames)))
    write_payload(payload, frames)
    checked = Header(len(payload), 0, 2, checksum_parts([payload]), AGREEMENT)
    unchecked = Header(len(payload), 0, 2, checksum_parts([payload[:64]]), AGREEMENT)
    payload[64 + 63] = 1
    with pytest.raises(ProtocolError, match="checksum"):
        read_frames(payload, checked, LIMITS, frames_checked=True)
    assert read_frames(payload, unchecked, LIMITS, frames_checked=False) == frames


@given(FRAMES, st.data())
def test_a_truncated_or_lengthened_payload_is_refused(frames: list[bytes], data: st.DataObject) -> None:
    slot = slot_of([*frames, b"last"])
    header = read_header(memoryview(slot))
    payload = memoryview(slot)[HEADER_NBYTES:]
    for frames_checked in (True, False):
        length = data.draw(st.integers(0, len(payload) - 1))
        with pytest.raises(ProtocolError):
            read_frames(payload[:length], header, Limits(), frames_checked=frames_checked)
    longer = memoryview(bytes(payload) + bytes(64))
    longer_header = Header(len(longer), 0, header.num_frames, checksum_parts([longer]), AGREEMENT)
    with pytest.raises(ProtocolError, match="shorter than the payload"):
        read_frames(longer, longer_header, Limits(), frames_checked=True)


@pytest.mark.parametrize(
    ("header", "limits", "text"),
    [
        (Header(128, 0, 1, 0, AGREEMENT), Limits(payload_nbytes=127), "payload_nbytes=127"),
        (Header(128, 0, 3, 0, AGREEMENT), Limits(num_frames=2), "num_frames=2"),
    ],
)
def test_what_is_above_a_limit_names_it(header: Header, limits: Limits, text: str) -> None:
    with pytest.raises(LimitError, match=text):
        check_lengths(header, limits)


def test_a_frame_above_its_limit_names_it() -> None:
    with pytest.raises(LimitError, match="frame_nbytes=9"):
        read_slot(slot_of([b"0123456789"]), Limits(frame_nbytes=9))
    assert read_slot(slot_of([b"012345678"]), Limits(frame_nbytes=9, num_frames=1, payload_nbytes=128))


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None])
def test_a_limit_is_a_positive_int(value: object) -> None:
    with pytest.raises(ValueError, match="num_frames"):
        Limits(num_frames=value)  # type: ignore[arg-type]


def test_frames_are_checked_below_64_kib_and_across_wires_unless_the_job_says_otherwise() -> None:
    assert covered_below_nbytes(crosses_wire=False, payload_checksum=None) == 64 * 1024
    assert covered_below_nbytes(crosses_wire=True, payload_checksum=None) > 1 << 60
    assert covered_below_nbytes(crosses_wire=False, payload_checksum=True) > 1 << 60
    assert covered_below_nbytes(crosses_wire=True, payload_checksum=False) == 0


@given(st.sampled_from(["call", "encode"]), st.text(), st.text(), st.integers(1024, 5000))
def test_a_failure_fits_in_its_room_and_survives_when_it_is_short(
    phase: str, summary: str, traceback: str, slot_nbytes: int
) -> None:
    failure = Failure(phase, summary, traceback)
    frames = failure.frames(slot_nbytes - HEADER_NBYTES)
    assert payload_nbytes(frames) <= slot_nbytes - HEADER_NBYTES
    read = Failure.from_frames([memoryview(frame) for frame in frames])
    assert read.phase == phase
    if len(repr(summary + traceback)) * 4 < slot_nbytes - 400:
        assert read == Failure(phase, printable(summary), printable(traceback))


@pytest.mark.parametrize("text", ["x" * 10_000_000, "\U0001f600" * 2_500_000, "\ud800" * 1_000_000])
def test_ten_megabytes_of_error_text_fit_in_the_smallest_slot(text: str) -> None:
    frames = Failure("encode", "ValueError: " + text, text).frames(1024 - HEADER_NBYTES)
    assert payload_nbytes(frames) <= 1024 - HEADER_NBYTES
    read = Failure.from_frames([memoryview(frame) for frame in frames])
    assert read.phase == "encode"
    assert read.summary.startswith("ValueError: ")
    assert "characters in all" in read.summary
    assert read.traceback.startswith("... the end of ")
    assert "\ufffd" not in read.summary + read.traceback


@pytest.mark.parametrize("slot_nbytes", [1024, 1025, 1026, 1027, 16384])
def test_a_long_summary_and_a_long_traceback_share_the_room(slot_nbytes: int) -> None:
    room = slot_nbytes - HEADER_NBYTES - 256 - len("call")
    _, summary, traceback = Failure("call", "S" * 50_000, "T" * 50_000).frames(slot_nbytes - HEADER_NBYTES)
    assert abs(len(summary) - len(traceback)) <= 1
    assert len(summary) + len(traceback) == room


def test_what_one_text_does_not_need_the_other_gets() -> None:
    _, summary, traceback = Failure("call", "S" * 50_000, "T" * 50).frames(960)
    assert (len(summary), traceback) == (960 - 256 - 4 - 50, b"T" * 50)
    _, summary, traceback = Failure("call", "S" * 50, "T" * 50_000).frames(960)
    assert (summary, len(traceback)) == (b"S" * 50, 960 - 256 - 4 - 50)
    _, summary, traceback = Failure("call", "S" * 50_000, "").frames(960)
    assert (len(summary), traceback) == (960 - 256 - 4, b"")


def test_a_long_traceback_keeps_its_end() -> None:
    frames = Failure("encode", "ValueError: short", "start" + "." * 5000 + "end").frames(1024 - HEADER_NBYTES)
    read = Failure.from_frames([memoryview(frame) for frame in frames])
    assert read.summary == "ValueError: short"
    assert read.traceback.endswith("..end")


def test_surrogates_in_an_error_text_are_escaped() -> None:
    frames = Failure("encode", "KeyError: '\udcff'", "\ud800").frames(960)
    read = Failure.from_frames([memoryview(frame) for frame in frames])
    assert (read.summary, read.traceback) == (r"KeyError: '\udcff'", r"\ud800")


def test_damaged_error_text_is_replaced_and_a_wrong_number_of_texts_refused() -> None:
    assert Failure.from_frames([memoryview(b"\xff"), memoryview(b"s"), memoryview(b"\xc3")]).summary == "s"
    with pytest.raises(ProtocolError, match="2 frames instead of 3"):
        Failure.from_frames([memoryview(b"")] * 2)
