"""The wire format of a slot: pure functions on byte views. Nothing here knows of groups, transports or objects.

A slot starts with a 64-byte little-endian header; `docs/wire.md` has the table. The payload that follows it, in the
slot or in round 2, is a frame table (u64 length per frame) padded to 64 bytes, then the frames, each padded to 64 with
zeros. There are lengths only and no offsets, so that frames can neither overlap nor leave holes.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache, partial

from xxhash import xxh3_64, xxh3_64_intdigest

from gather_core.codec import Buffer, Frames, Limits
from gather_core.errors import LimitError, ProtocolError, printable, shorten
from gather_core.memory import ALIGNMENT, UNBOUNDED

HEADER_NBYTES = 64
MAGIC = b"gthr"
WIRE_VERSION = 1
SEALED = 1
"""The flag of slots whose payload ends with a seal."""
CHECKED_BELOW_NBYTES = 64 * 1024
"""Payloads smaller than this always have their frames checksummed: it costs less than a microsecond."""

HEADER = struct.Struct("<QQIIQ32s")
PREFIX = struct.Struct("<QQ")
CHECKED = struct.Struct("<IIQ32s")
"""What the header's checksum covers: all behind the prefix."""
_AGREEMENT = struct.Struct("<4sBBHQQII")
_TEXT_ENCODING = "utf-8"
_PADDING = tuple(bytes(count) for count in range(ALIGNMENT))
_JOINED_UP_TO_NBYTES = 4096
"""Payloads that are joined first, as one copy more costs less than copying part by part."""


class Kind(IntEnum):
    """What a slot carries."""

    DATA = 1
    ERROR = 2


_KIND_OFFSET = 5
_DATA = int(Kind.DATA)
"""Asking an enum for its member takes longer than the comparison."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all ranks of a healthy round write alike: bytes 32 to 63 of the header."""

    kind: int
    group_id: int
    seq: int
    world_size: int
    op: int
    flags: int = 0

    def pack(self) -> bytes:
        """Returns the 32 bytes."""
        return pack_agreement(self.kind, self.group_id, self.seq, self.world_size, self.op, self.flags)


def pack_agreement(kind: int, group_id: int, seq: int, world_size: int, op: int, flags: int = 0) -> bytes:
    """Returns the 32 bytes of an `Agreement` without making one, which costs more than packing it."""
    return _AGREEMENT.pack(MAGIC, WIRE_VERSION, kind, flags, group_id, seq, world_size, op)


def agreement_packer(kind: int, group_id: int, flags: int) -> Callable[[int, int, int], bytes]:
    """Returns what packs, of `seq`, `world_size` and `op`, the agreements that have all else alike, in C alone."""
    return partial(_AGREEMENT.pack, MAGIC, WIRE_VERSION, kind, flags, group_id)


@dataclass(slots=True)
class Header:
    """A header whose checksum was right."""

    total_nbytes: int
    """The size prefix: all bytes after the header, wherever they travel."""
    rank: int
    num_frames: int
    """0: no object here."""
    payload_checksum: int
    agreement: bytes
    """Compared as bytes; `parse_agreement` takes it apart."""

    def pack(self) -> bytes:
        """Returns the 64 bytes."""
        return pack_header(self.total_nbytes, self.rank, self.num_frames, self.payload_checksum, self.agreement)


def is_data(agreement: bytes) -> bool:
    """Whether a rank that writes this agreement block is healthy."""
    return agreement[_KIND_OFFSET] == _DATA


def parse_agreement(block: bytes) -> Agreement:
    """Takes an agreement block apart.

    Raises:
        ProtocolError: Another magic, version, kind, or flags that this version does not know.
    """
    magic, version, kind, flags, group_id, seq, world_size, op = _AGREEMENT.unpack(block)
    if magic != MAGIC:
        raise ProtocolError(f"the slot starts with {magic!r} instead of {MAGIC!r}: it was never written, or not by us")
    if version != WIRE_VERSION:
        raise ProtocolError(f"wire version {version} instead of {WIRE_VERSION}: the ranks run different releases")
    if kind not in (Kind.DATA, Kind.ERROR) or flags & ~SEALED:
        raise ProtocolError(f"unknown kind {kind} or flags {flags:#x}")
    return Agreement(kind, group_id, seq, world_size, op, flags)


def pack_header(total_nbytes: int, rank: int, num_frames: int, payload_checksum: int, agreement: bytes) -> bytes:
    """Returns the 64 bytes of a header."""
    checked = CHECKED.pack(rank, num_frames, payload_checksum, agreement)
    return PREFIX.pack(total_nbytes, xxh3_64_intdigest(checked, total_nbytes)) + checked


def read_header(slot: memoryview) -> Header:
    """Reads and verifies the header of a slot, whatever its bytes are; allocates nothing but a copy of them.

    What is verified is the copy: a peer may share the slot's memory.

    Raises:
        ProtocolError: Too short, or the checksum is wrong.
    """
    if len(slot) < HEADER_NBYTES:
        raise ProtocolError(f"a slot of {len(slot)} bytes is shorter than its {HEADER_NBYTES}-byte header")
    header = slot[:HEADER_NBYTES].tobytes()
    total_nbytes, checksum, rank, num_frames, payload_checksum, agreement = HEADER.unpack(header)
    if checksum != xxh3_64_intdigest(header[PREFIX.size :], total_nbytes):
        raise ProtocolError("the header's checksum is wrong: the slot was damaged on its way, or never written")
    return Header(total_nbytes, rank, num_frames, payload_checksum, agreement)


def payload_nbytes(frames: Frames) -> int:
    """Bytes of the payload: frame table and frames, each padded to 64."""
    nbytes = (8 * len(frames) + 63) & -64
    for frame in frames:
        nbytes += (len(frame) + 63) & -64
    return nbytes


@lru_cache(maxsize=64)
def frame_table(num_frames: int) -> struct.Struct:
    """The layout of a frame table, with the padding behind it."""
    return struct.Struct(f"<{num_frames}Q{-8 * num_frames % ALIGNMENT}x")


def _parts(frames: Frames) -> list[Buffer]:
    """The payload in order: frame table, frames, and the padding behind each."""
    parts: list[Buffer] = [frame_table(len(frames)).pack(*map(len, frames))]
    for frame in frames:
        parts.append(frame)
        parts.append(_PADDING[-len(frame) % ALIGNMENT])
    return parts


def write_payload(destination: memoryview, frames: Frames) -> None:
    """Writes frame table and frames into `destination`, which has exactly `payload_nbytes(frames)` bytes."""
    parts = _parts(frames)
    if len(destination) <= _JOINED_UP_TO_NBYTES:
        destination[:] = b"".join(parts)
        return
    position = 0
    for part in parts:
        end = position + len(part)
        destination[position:end] = part
        position = end


def payload_parts(frames: Frames) -> list[memoryview]:
    """Returns the payload as views in order, padding included; the frames are aliased and not copied."""
    return [memoryview(part) for part in _parts(frames) if len(part)]


def covered_below_nbytes(crosses_wire: bool, payload_checksum: bool | None) -> int:
    """Decides up to which size the checksum of a payload covers its frames, and not the frame table alone.

    A pure function of what round 0 agreed. `payload_checksum` None is the default policy: wherever bytes cross a wire
    or a device, and below 64 KiB everywhere.
    """
    if payload_checksum is None:
        return UNBOUNDED if crosses_wire else CHECKED_BELOW_NBYTES
    return UNBOUNDED if payload_checksum else 0


def checksum_parts(parts: Sequence[memoryview]) -> int:
    """xxh3-64 of the concatenated parts."""
    if len(parts) == 1:
        return xxh3_64_intdigest(parts[0])
    digest = xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def check_lengths(header: Header, limits: Limits) -> None:
    """Checks what a header claims, before anything is allocated for it.

    Raises:
        LimitError: A length is above `limits`.
        ProtocolError: The lengths contradict each other.
    """
    if header.total_nbytes > limits.payload_nbytes:
        raise LimitError(
            f"a payload of {header.total_nbytes} bytes is above Limits.payload_nbytes={limits.payload_nbytes}"
        )
    if header.num_frames > limits.num_frames:
        raise LimitError(f"{header.num_frames} frames are above Limits.num_frames={limits.num_frames}")
    if header.total_nbytes % ALIGNMENT or header.total_nbytes < (8 * header.num_frames + 63) & -64:
        raise ProtocolError(f"{header.total_nbytes} bytes cannot hold a table of {header.num_frames} frames")


def read_frames(payload: memoryview, header: Header, limits: Limits, *, frames_checked: bool) -> list[memoryview]:
    """Verifies a payload and cuts it into its frames, as views.

    Args:
        payload: Exactly `header.total_nbytes` bytes.
        header: A header that passed `check_lengths`.
        limits: Bounds for the frames.
        frames_checked: Whether the checksum covers the frames (`covered_below_nbytes`).

    Raises:
        LimitError: A frame is above `limits`.
        ProtocolError: Checksum or lengths are wrong. Padding is only checked as part of what the checksum covers.
    """
    table = frame_table(header.num_frames)
    checked = payload if frames_checked else payload[: table.size]
    if xxh3_64_intdigest(checked) != header.payload_checksum:
        raise ProtocolError(f"the payload's checksum is wrong: its {len(payload)} bytes were damaged on their way")
    frames = []
    position = table.size
    total = len(payload)
    max_nbytes = limits.frame_nbytes
    for length in table.unpack_from(payload):
        if length > max_nbytes:
            raise LimitError(f"a frame of {length} bytes is above Limits.frame_nbytes={max_nbytes}")
        end = position + length
        if end > total:
            raise ProtocolError("the frames are longer than the payload")
        frames.append(payload[position:end])
        position = (end + 63) & -64
    if position != total:
        raise ProtocolError("the frames are shorter than the payload")
    return frames


@dataclass(frozen=True)
class Failure:
    """What an ERROR slot tells the other ranks."""

    phase: str
    """Where it happened: "call" for the function given to `run`, else "encode"."""
    summary: str
    """Type and message of the exception."""
    traceback: str

    def frames(self, max_nbytes: int) -> list[bytes]:
        """Returns the texts as frames whose payload fits in `max_nbytes`, with a mark where one was cut.

        The summary loses its middle and the traceback its start. Each gets half of the room, and what the other leaves.
        """
        phase = _encoded(self.phase)
        room = max_nbytes - 4 * ALIGNMENT - len(phase)  # the table, and the padding of three frames
        traceback = _encoded(self.traceback)
        summary = _encoded(shorten(self.summary, max(room // 2, room - len(traceback))))
        return [phase, summary, _end_of(traceback, room - len(summary))]

    @classmethod
    def from_frames(cls, frames: Sequence[memoryview]) -> "Failure":
        """Reads the frames of an ERROR slot; damaged text is replaced.

        Raises:
            ProtocolError: Not three frames.
        """
        if len(frames) != 3:
            raise ProtocolError(f"an ERROR slot with {len(frames)} frames instead of 3")
        return cls(*(printable(bytes(frame).decode(_TEXT_ENCODING, "replace")) for frame in frames))


def _encoded(text: str) -> bytes:
    return text.encode(_TEXT_ENCODING, "backslashreplace")


def _end_of(text: bytes, nbytes: int) -> bytes:
    """The last `nbytes` of a text, with a mark if it was longer; a character that is cut in two is dropped."""
    if len(text) <= nbytes:
        return text
    mark = f"... the end of {len(text)} bytes: ... ".encode()
    end = text[len(text) - max(nbytes - len(mark), 0) :]
    return (mark + end.decode(_TEXT_ENCODING, "ignore").encode(_TEXT_ENCODING))[:nbytes]
