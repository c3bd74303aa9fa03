"""Golden slots: what each holds, how this release writes it, and a reader of each wire version.

The readers follow docs/wire.md and share nothing with `gather_core.slot`, so that slots of every wire version are read
for ever, though a release itself reads only its own.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xxhash import xxh3_64_intdigest

from gather_core import Limits
from gather_core import slot as wire
from gather_core.memory import align
from golden import files


@dataclass(frozen=True)
class Slot:
    """One rank's slot with its payload, wherever that travels."""

    frames: tuple[bytes, ...]
    kind: int = 1
    rank: int = 1
    seq: int = 7
    op: int = 0xDEADBEEF
    group_id: int = 0x0123456789ABCDEF
    world_size: int = 3
    frames_checked: bool = True


_MANY = tuple(bytes([number]) * number for number in range(10))

SLOTS = {
    "data": Slot((b"\xffone frame",)),
    "data_of_many_frames": Slot(_MANY, rank=2),
    "data_that_fills_its_frames": Slot((b"x" * 64, b"", b"y" * 128)),
    "no_object": Slot((), rank=0, seq=1),
    "error": Slot((b"encode", b"TypeError: no codec takes it", b"Traceback:\n  t\xc3\xa9xt\n"), kind=2, op=0),
    "payload_in_round_2": Slot((b"head", bytes(range(256)) * 8), seq=2**63),
    "frames_not_checked": Slot((b"head", b"z" * 70_000), frames_checked=False),
    "largest_numbers": Slot(
        (b"",), rank=2**32 - 1, seq=2**64 - 1, op=2**32 - 1, group_id=2**64 - 1, world_size=2**32 - 1
    ),
}
"""Add slots, and never change one that is there."""


def write(slot: Slot) -> tuple[bytes, bytes]:
    """Header and payload as this release writes them."""
    payload = bytearray(wire.payload_nbytes(slot.frames))
    wire.write_payload(memoryview(payload), slot.frames)
    checked = memoryview(payload)[: None if slot.frames_checked else align(8 * len(slot.frames))]
    agreement = wire.Agreement(slot.kind, slot.group_id, slot.seq, slot.world_size, slot.op).pack()
    checksum = wire.checksum_parts([checked])
    header = wire.pack_header(len(payload), slot.rank, len(slot.frames), checksum, agreement)
    return header, bytes(payload)


def vectors() -> dict[str, Any]:
    """What a new file holds."""
    found = {}
    for name, slot in SLOTS.items():
        header, payload = write(slot)
        found[name] = {"header": files.to_text(header), "payload": files.to_text(payload)}
    return found


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(f"no slot of this wire version: {what}")


def _read_1(header: bytes, payload: bytes) -> Slot:
    total_nbytes, checksum, rank, num_frames, payload_checksum = struct.unpack_from("<QQIIQ", header)
    magic, version, kind, flags, group_id, seq, world_size, op = struct.unpack_from("<4sBBHQQII", header, 32)
    _require(checksum == xxh3_64_intdigest(header[16:], total_nbytes), "header_checksum")
    _require(len(header) == 64 and total_nbytes == len(payload) and total_nbytes % 64 == 0, "total_nbytes")
    _require((magic, version, flags) == (b"gthr", 1, 0), "agreement")
    table = payload[: -(-8 * num_frames // 64) * 64]
    frames_checked = payload_checksum == xxh3_64_intdigest(payload)
    _require(frames_checked or payload_checksum == xxh3_64_intdigest(table), "payload_checksum")
    frames = _cut_1(payload[len(table) :], struct.unpack_from(f"<{num_frames}Q", table))
    return Slot(frames, kind, rank, seq, op, group_id, world_size, frames_checked)


def _cut_1(data: bytes, lengths: Sequence[int]) -> tuple[bytes, ...]:
    frames = []
    for nbytes in lengths:
        padded = -(-nbytes // 64) * 64
        _require(len(data) >= padded and not any(data[nbytes:padded]), "padding")
        frames.append(data[:nbytes])
        data = data[padded:]
    _require(not data, "end")
    return tuple(frames)


READERS: dict[int, Callable[[bytes, bytes], Slot]] = {1: _read_1}
"""By wire version: what reads header and payload from their description alone."""


def read_today(header: bytes, payload: bytes, *, frames_checked: bool) -> Slot:
    """What this release reads."""
    limits = Limits()
    found = wire.read_header(memoryview(header))
    agreement = wire.parse_agreement(found.agreement)
    wire.check_lengths(found, limits)
    frames = wire.read_frames(memoryview(payload), found, limits, frames_checked=frames_checked)
    slot = Slot(tuple(map(bytes, frames)), frames_checked=frames_checked)
    fields = {name: getattr(agreement, name) for name in ("kind", "seq", "op", "group_id", "world_size")}
    return replace(slot, rank=found.rank, **fields)
