"""What is in a slot after each step of filling it: sizes at its edges, steps that fail, and what was there before."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gather_core import Gatherer, Limits, ProtocolError, SlotOverflowError, slot, slot_writer
from gather_core.chunks import payload_views, pieces
from gather_core.memory import UNBOUNDED
from gather_core.registry import get_codec
from gather_core.slot import (
    HEADER_NBYTES,
    Header,
    Kind,
    check_lengths,
    checksum_parts,
    pack_agreement,
    pack_header,
    payload_nbytes,
    payload_parts,
    read_frames,
    read_header,
)
from gather_core.slot_writer import Outgoing, SlotWriter
from gather_core.verdict import Terms, judge
from gather_transports.threads import ThreadsTransport
from thread_gatherers import FramesCodec, on_gatherers

SLOT = 2048
ROOM = SLOT - HEADER_NBYTES - 64  # header, and the table of one frame
GROUP, OP, SECRET = 0x1234, 7, b"secret! "


class Lent:
    """Lends one slot, and lets its bytes be seen."""

    def __init__(self, fill: bytes = b"\xaa", nbytes: int = SLOT) -> None:
        self.memory = bytearray(fill * nbytes)

    def slot(self, nbytes: int) -> memoryview:
        if nbytes > len(self.memory):
            self.memory += bytes(nbytes - len(self.memory))
        return memoryview(self.memory)[:nbytes]


def _terms(*, overflow_is_error: bool = True, covered_below_nbytes: int = UNBOUNDED) -> Terms:
    return Terms(GROUP, 1, SLOT, Limits(), SLOT, overflow_is_error, covered_below_nbytes)


def _write(lent: Lent, frames: Sequence[bytes], seq: int = 1, terms: Terms | None = None) -> Outgoing:
    writer = SlotWriter(lent, 0, terms or _terms())  # type: ignore[arg-type]
    return writer.write(frames, writer.agreement(seq, 1, OP))


def _agreement(seq: int = 1) -> bytes:
    return pack_agreement(Kind.DATA, GROUP, seq, 1, OP)


def _read(lent: Lent, seq: int = 1) -> list[bytes]:
    """As a peer does that sees the whole slot."""
    view = memoryview(lent.memory).toreadonly()
    (header,) = judge([view], _agreement(seq), _terms()).headers
    payload = view[HEADER_NBYTES : HEADER_NBYTES + header.total_nbytes]
    return [bytes(frame) for frame in read_frames(payload, header, Limits(), frames_checked=True)]


@pytest.mark.plan(34)
@pytest.mark.parametrize("more", [-1, 0])
def test_what_fits_is_written_up_to_the_last_byte_and_not_behind_it(more: int) -> None:
    lent = Lent(nbytes=SLOT + 64)
    outgoing = _write(lent, [b"p" * (ROOM + more)])
    assert (outgoing.filled, outgoing.nbytes) == (SLOT, SLOT - HEADER_NBYTES)
    assert lent.memory[SLOT:] == b"\xaa" * 64
    assert _read(lent) == [b"p" * (ROOM + more)]


@pytest.mark.plan(34)
@pytest.mark.parametrize("overflow_is_error", [True, False])
@pytest.mark.parametrize("more", [1, 64, 65, 100_000])
def test_of_what_does_not_fit_the_slot_holds_the_exact_size_and_no_byte(more: int, overflow_is_error: bool) -> None:
    lent, frames, terms = Lent(), [b"p" * (ROOM + more)], _terms(overflow_is_error=overflow_is_error)
    outgoing = _write(lent, frames, terms=terms)
    needed = HEADER_NBYTES + payload_nbytes(frames)
    assert needed == SLOT + 64 * -(-more // 64)
    assert (outgoing.filled, len(lent.memory)) == (HEADER_NBYTES, SLOT)
    assert lent.memory[HEADER_NBYTES:] == b"\xaa" * (SLOT - HEADER_NBYTES)
    if overflow_is_error:
        with pytest.raises(SlotOverflowError) as caught:
            judge([memoryview(lent.memory)], _agreement(), terms)
        assert (caught.value.nbytes, caught.value.slot_nbytes) == ({0: needed}, SLOT)
    else:
        assert judge([memoryview(lent.memory)], _agreement(), terms).nbytes_in_round_2 == [needed - HEADER_NBYTES]


class Stopped(Exception):  # noqa: N818
    """The writer came this far."""


def _stop(*_: object) -> Any:
    raise Stopped


def _write_half(destination: memoryview, frames: Sequence[Any]) -> None:
    slot.write_payload(destination, frames)
    destination[len(destination) // 2 :] = bytes(len(destination) - len(destination) // 2)
    raise Stopped


STEPS: dict[str, tuple[Any, str, Any]] = {
    "half of the payload": (slot_writer, "write_payload", _write_half),
    "the agreement": (slot_writer, "agreement_packer", lambda *_: _stop),
    "the payload's checksum": (slot_writer, "xxh3_64_intdigest", _stop),
    "the header": (slot_writer, "pack_header", _stop),
    "the header's checksum": (slot, "xxh3_64_intdigest", _stop),
}


@pytest.mark.plan(35)
@pytest.mark.parametrize("step", STEPS)
def test_a_writer_that_stops_leaves_nothing_that_validates(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, used = Lent(b"\0"), Lent(b"\0")
    _write(used, [b"earlier"], seq=1)
    module, name, replacement = STEPS[step]
    new = [b"new" * 300, b""]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, replacement)
        for lent in (fresh, used):
            with pytest.raises(Stopped):
                _write(lent, new, seq=2)
    with pytest.raises(ProtocolError):
        read_header(memoryview(fresh.memory))
    with pytest.raises(ProtocolError):
        _read(used, seq=2)
    assert fresh.memory[:HEADER_NBYTES] == bytes(HEADER_NBYTES)
    assert _write(fresh, new, seq=2).nbytes == 64 + 960
    assert _read(fresh, seq=2) == new


@pytest.mark.plan(36)
@pytest.mark.parametrize("frames", [[], [b""], [b"short"], [b"x" * 65, b"", b"y"]], ids=len)
def test_bytes_of_an_earlier_message_are_neither_sent_nor_read(frames: list[bytes]) -> None:
    lent = Lent()
    _write(lent, [SECRET * (ROOM // len(SECRET))])
    outgoing = _write(lent, frames, seq=2)
    sent = bytes(lent.memory[: outgoing.filled])
    assert SECRET[:4] not in sent
    assert SECRET in lent.memory[outgoing.filled :]
    assert sent[HEADER_NBYTES:] == b"".join(payload_parts(frames))
    assert _read(lent, seq=2) == frames


@pytest.mark.plan(36)
def test_ranks_see_nothing_of_earlier_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    exchange = ThreadsTransport.all_gather_slots

    def watched(self: ThreadsTransport, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        views = exchange(self, nbytes, timeout_s=timeout_s)
        seen.extend(bytes(view) for view in views)
        return views

    def body(gatherer: Gatherer) -> object:
        for _ in range(2):  # both of its two buffers
            gatherer.all_gather([SECRET * (ROOM // len(SECRET))])
        num_before = len(seen)
        for _ in range(4):
            gatherer.all_gather([b"short"])
        return num_before

    monkeypatch.setattr(ThreadsTransport, "all_gather_slots", watched)
    on_gatherers(1, body, slot_nbytes=SLOT, codec=FramesCodec())
    assert sum(SECRET in view for view in seen) == 2
    assert len(seen) == 6


@pytest.mark.plan(37)
def test_an_empty_object_is_another_slot_than_no_object() -> None:
    empty, none, nothing = Lent(), Lent(), Lent(b"\0")
    _write(empty, [b""])
    _write(none, [])
    assert (_read(empty), _read(none)) == ([b""], [])
    headers = [read_header(memoryview(lent.memory)) for lent in (empty, none)]
    assert [header.num_frames for header in headers] == [1, 0]
    with pytest.raises(ProtocolError):
        read_header(memoryview(nothing.memory))


@pytest.mark.plan(42)
def test_a_change_of_the_object_after_its_slot_is_written_has_no_effect() -> None:
    lent, source = Lent(), bytearray(b"x" * 500)
    _write(lent, [memoryview(source)])  # type: ignore[list-item]
    source[:] = b"y" * 500
    assert _read(lent) == [b"x" * 500]


GIB = 1 << 30


def _fake(nbytes: int, start: bytes = b"") -> tuple[memoryview, object]:
    """A buffer of which only the first bytes, `start`, are there; and what keeps them."""
    memory = ctypes.create_string_buffer(start, max(len(start), 1))
    view = memoryview((ctypes.c_ubyte * nbytes).from_address(ctypes.addressof(memory))).cast("B")
    return view, memory


@pytest.mark.plan(39)
def test_sizes_above_4_gib_are_written_and_judged_right() -> None:
    sizes = [5 * GIB + 3, 1, 6 * GIB]
    fakes = [_fake(size) for size in sizes]
    frames: Any = [view for view, _ in fakes]
    total = 64 + sum(-(-size // 64) * 64 for size in sizes)
    parts = payload_parts(frames)
    assert payload_nbytes(frames) == total == sum(map(len, parts))
    assert parts[0][:24] == b"".join(size.to_bytes(8, "little") for size in sizes)
    lent, terms = Lent(), _terms(overflow_is_error=False, covered_below_nbytes=0)
    assert _write(lent, frames, terms=terms).nbytes == total
    assert lent.memory[:8] == total.to_bytes(8, "little")
    verdict = judge([memoryview(lent.memory)], _agreement(), terms)
    assert (verdict.nbytes_in_round_2, verdict.largest_nbytes) == ([total], HEADER_NBYTES + total)
    with pytest.raises(SlotOverflowError) as caught:
        judge([memoryview(lent.memory)], _agreement(), _terms())
    assert caught.value.nbytes == {0: HEADER_NBYTES + total}


@pytest.mark.plan(39)
def test_frames_above_4_gib_are_cut_where_they_lie() -> None:
    sizes = [5 * GIB + 3, 0, 6 * GIB, 7]
    table = b"".join(size.to_bytes(8, "little") for size in sizes).ljust(64, b"\0")
    total = 64 + sum(-(-size // 64) * 64 for size in sizes)
    payload, memory = _fake(total, table)
    header = Header(total, 0, len(sizes), checksum_parts([payload[:64]]), _agreement())
    check_lengths(header, Limits())
    frames = read_frames(payload, header, Limits(), frames_checked=False)
    assert [len(frame) for frame in frames] == sizes
    assert [_address(frame) - _address(payload) for frame in frames] == [64, *[5 * GIB + 128] * 2, 11 * GIB + 128]
    with pytest.raises(ProtocolError):
        read_frames(payload[: 4 * GIB], header, Limits(), frames_checked=False)
    assert memory is not None


def _address(view: memoryview) -> int:
    """Of a view, an empty one too; an int32 would not hold what is compared."""
    return int(np.frombuffer(view, np.uint8).ctypes.data) if len(view) else int(np.asarray(view).ctypes.data)


@pytest.mark.plan(39)
def test_chunks_above_4_gib_start_where_they_should() -> None:
    part, memory = _fake(5 * GIB)
    (piece,) = pieces([part[:10], part], 4 * GIB + 20, 4 * GIB + 50)
    assert (len(piece), _address(piece) - _address(part)) == (30, 4 * GIB + 10)
    views = payload_views(part, [4 * GIB + 1, 100])
    assert _address(views[1]) - _address(part) == 4 * GIB + 64
    assert memory is not None


@pytest.mark.plan(39)
def test_headers_hold_lengths_of_64_bits() -> None:
    view = memoryview(bytearray(HEADER_NBYTES))
    for nbytes in (2**32 - 64, 2**32, 2**32 + 64, 2**63):
        view[:HEADER_NBYTES] = pack_header(nbytes, 0, 1, 0, _agreement())
        assert read_header(view).total_nbytes == nbytes


@pytest.mark.plan(39)
@pytest.mark.parametrize("spec", ["pickle", "cloudpickle", "auto", "msgpack", "raw"])
def test_arrays_above_4_gib_are_encoded_and_decoded_as_they_lie(spec: str) -> None:
    fake, memory = _fake(5 * GIB)
    array = np.frombuffer(fake, np.uint8)
    frames = get_codec(spec).encode(array)
    assert [memoryview(frame).nbytes for frame in frames][1:] == [5 * GIB]
    back: Any = get_codec(spec).decode([memoryview(frames[0]), memoryview(frames[1]).cast("B")])
    assert (back.shape, back.ctypes.data) == (array.shape, array.ctypes.data)
    assert memory is not None
