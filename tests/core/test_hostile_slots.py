"""Slots that no rank writes, and slots that change while they are read."""

import struct
from collections.abc import Callable

import pytest
from xxhash import xxh3_64_intdigest

import hostile
from confined import Confined
from gather_core import LimitError, Limits, ProtocolError, slot
from gather_core.memory import aligned_buffer
from gather_core.slot import (
    HEADER_NBYTES,
    MAGIC,
    Agreement,
    Header,
    Kind,
    check_lengths,
    checksum_parts,
    pack_header,
    payload_nbytes,
    read_frames,
    read_header,
    write_payload,
)

pytest_plugins = ["confined_fixture"]

_MIB = 1 << 20
AGREEMENT = Agreement(Kind.DATA, 1, 2, 3, 4).pack()
U64, U32 = (1 << 64) - 1, (1 << 32) - 1


def _slot(
    lengths: list[int],
    rest: bytes = b"",
    *,
    num_frames: int | None = None,
    total: int | None = None,
    agreement: bytes = AGREEMENT,
) -> bytes:
    """A slot with right checksums, whatever its frame table says."""
    table = struct.pack(f"<{len(lengths)}Q", *lengths)
    payload = table + bytes(-len(table) % 64) + rest
    view = memoryview(bytearray(HEADER_NBYTES) + payload)
    num_frames = len(lengths) if num_frames is None else num_frames
    checksum = checksum_parts([memoryview(payload)])
    view[:HEADER_NBYTES] = pack_header(len(payload) if total is None else total, 0, num_frames, checksum, agreement)
    return bytes(view)


NIL = b"\xc0".ljust(64, b"\0")
IMPOSSIBLE = {
    "a frame too long": _slot([65], NIL),
    "a frame too short": _slot([1], NIL + NIL),
    "no frame for the bytes": _slot([], NIL),
    "sum too large by one frame": _slot([1, 1], NIL),
    "2^64 - 1 bytes": _slot([U64], NIL),
    "2^63 bytes": _slot([1 << 63], NIL),
    "lengths that wrap around": _slot([U64 - 62, 1], NIL),
    "lengths whose padding wraps around": _slot([U64, 65], NIL + NIL),
    "an overlap by a negative length": _slot([64, U64 - 63], NIL),
    "2^32 - 1 frames": _slot([1], NIL, num_frames=U32),
    "2^20 frames": _slot([1], NIL, num_frames=1 << 20),
    "more frames than the table": _slot([1], NIL, num_frames=9),
    "no frames": _slot([1], NIL, num_frames=0),
    "more bytes than there are": _slot([1], NIL, total=256),
    "2^64 - 64 bytes in all": _slot([1], NIL, total=U64 - 63),
    "bytes that are no multiple of 64": _slot([1], NIL + b"x"),
    "fewer bytes than the table": _slot([1] * 9, b"", total=64),
    "another magic": _slot([1], NIL, agreement=b"GTHR" + AGREEMENT[4:]),
    "another version": _slot([1], NIL, agreement=MAGIC + b"\x02" + AGREEMENT[5:]),
    "another kind": _slot([1], NIL, agreement=MAGIC + b"\x01\x03" + AGREEMENT[6:]),
    "flags": _slot([1], NIL, agreement=AGREEMENT[:6] + b"\x02\0" + AGREEMENT[8:]),
    "nothing": b"",
    "less than a header": _slot([1], NIL)[:63],
    "zeros": bytes(4096),
}


@pytest.mark.plan(56)
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_slot_that_no_rank_writes_is_refused_though_its_checksums_are_right(confined: Confined, what: str) -> None:
    good = _slot([1], NIL)
    outcome = confined.call(
        hostile.damaged_slots, "msgpack", [(good, good), (good, IMPOSSIBLE[what])], more_nbytes=_MIB
    )
    same, refused = outcome.result()
    assert same == "same"
    assert refused in ("ProtocolError", "LimitError")


@pytest.mark.plan(56)
def test_a_table_of_as_many_frames_as_the_limit_allows_is_read(confined: Confined) -> None:
    good = _slot([1] + [0] * (Limits().num_frames - 1), NIL)
    seen = confined.call(hostile.damaged_slots, "msgpack", [(_slot([1], NIL), good)], more_nbytes=512 * _MIB)
    assert seen.result() == ["DecodeError"]  # msgpack's: nothing refers to them


Scribble = Callable[[], None]


@pytest.fixture
def while_hashing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scribble | None, Scribble | None], None]:
    """Has something happen right before and right after each checksum is made."""
    digest = xxh3_64_intdigest

    def install(before: Scribble | None, after: Scribble | None) -> None:
        def hooked(data: bytes, seed: int = 0) -> int:
            if before:
                before()
            made = digest(data, seed)
            if after:
                after()
            return made

        monkeypatch.setattr(slot, "xxh3_64_intdigest", hooked)

    return install


@pytest.mark.plan(60)
def test_a_header_that_changes_while_it_is_verified_is_the_one_that_was_verified(
    while_hashing: Callable[[Scribble | None, Scribble | None], None],
) -> None:
    """A peer that shares the memory shows a wrong header first, then the one that fits the checksum, or the reverse."""
    right, wrong = (memoryview(bytearray(HEADER_NBYTES)) for _ in range(2))
    right[:HEADER_NBYTES] = pack_header(640, 1, 1, 5, AGREEMENT)
    wrong[:] = right
    wrong[16:20] = struct.pack("<I", 2)
    shared = memoryview(bytearray(wrong))
    while_hashing(lambda: shared.__setitem__(slice(None), right), None)
    with pytest.raises(ProtocolError, match="checksum is wrong"):
        read_header(shared.toreadonly())
    shared[:] = right
    while_hashing(None, lambda: shared.__setitem__(slice(None), wrong))
    assert read_header(shared.toreadonly()) == Header(640, 1, 1, 5, AGREEMENT)


@pytest.mark.plan(60)
def test_lengths_that_change_behind_their_verification_reach_no_memory_but_the_payload(
    while_hashing: Callable[[Scribble | None, Scribble | None], None],
) -> None:
    frames = [b"x" * 100, b"y" * 50]
    payload = aligned_buffer(payload_nbytes(frames))
    for lengths in ((U64, U64), (U64 - 63, 192), (1 << 40, 0), (200, 50), (0, 0)):
        write_payload(payload, frames)
        header = Header(len(payload), 0, 2, checksum_parts([payload]), AGREEMENT)
        check_lengths(header, Limits())
        while_hashing(None, lambda lengths=lengths: struct.pack_into("<2Q", payload, 0, *lengths))  # type: ignore[misc]
        with pytest.raises((ProtocolError, LimitError)):
            read_frames(payload.toreadonly(), header, Limits(), frames_checked=True)


@pytest.mark.plan(60)
def test_each_length_is_read_once() -> None:
    """What is written over the table later changes nothing of the frames that were cut."""
    frames = [b"x" * 100, b"y" * 50]
    payload = aligned_buffer(payload_nbytes(frames))
    write_payload(payload, frames)
    header = Header(len(payload), 0, 2, checksum_parts([payload]), AGREEMENT)
    cut = read_frames(payload.toreadonly(), header, Limits(), frames_checked=True)
    payload[:64] = b"\xff" * 64
    assert [bytes(frame) for frame in cut] == frames
