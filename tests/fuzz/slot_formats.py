"""Slots and parts as trees, written with right checksums, so that mutations get behind them."""

import struct
from random import Random
from typing import Any

from xxhash import xxh3_64_intdigest

from fuzz.byte_mutations import Case
from fuzz.formats import Format

_HEADER = struct.Struct("<QQIIQ32s")
_AGREEMENT = struct.Struct("<4sBBHQQII")
_WIDTHS = (8, 1, 1, 2, 8, 8, 4, 4)
_WRONG = 0.02
"""How often a checksum is written that is wrong."""
_MOST_FRAMES = 64


class RoundFormat(Format):
    """How to judge, and one slot per rank.

    A slot is [total_nbytes, rank, num_frames, agreement, lengths, frames, whether the frames are checked]; what is None
    is written as what follows from the frames.
    """

    def read(self, case: Case) -> Any:
        how, *slots = case
        return [how, [_read_slot(slot) for slot in slots]]

    def write(self, tree: Any, rng: Random) -> Case:
        how, slots = (*tree, [], [])[:2] if isinstance(tree, list) else (tree, [])
        written = [_write_slot(slot, rng) for slot in slots] if isinstance(slots, list) else []
        return (how if isinstance(how, bytes) else b"", *written)


def _read_slot(slot: bytes) -> Any:
    total, _, rank, num_frames, _, agreement = _HEADER.unpack_from(slot)
    fields = list(_AGREEMENT.unpack(agreement))
    lengths = list(struct.unpack_from(f"<{min(num_frames, _MOST_FRAMES)}Q", slot, _HEADER.size))
    frames, position = [], _HEADER.size + _aligned(8 * len(lengths))
    for length in lengths:
        frames.append(slot[position : position + length])
        position += _aligned(length)
    is_regular = position == _HEADER.size + total and num_frames == len(lengths)
    return [None if is_regular else total, rank, None if is_regular else num_frames, fields, None, frames, True]


def _write_slot(tree: Any, rng: Random) -> bytes:
    total, rank, num_frames, agreement, lengths, frames, is_checked = _fields(tree)
    frames = [frame for frame in _list(frames) if isinstance(frame, bytes)]
    lengths = list(map(len, frames)) if lengths is None else [_int(length, 8) for length in _list(lengths)]
    table = struct.pack(f"<{len(lengths)}Q", *lengths)
    table += bytes(-len(table) % 64)
    payload = table + b"".join(frame + bytes(-len(frame) % 64) for frame in frames)
    total = len(payload) if total is None else _int(total, 8)
    num_frames = len(lengths) if num_frames is None else _int(num_frames, 4)
    table_nbytes = _aligned(8 * num_frames)
    checksum = xxh3_64_intdigest(payload[:total] if is_checked else payload[:table_nbytes])
    checksum ^= rng.random() < _WRONG
    rest = struct.pack("<IIQ", _int(rank, 4), num_frames, checksum) + _agreement(agreement)
    return struct.pack("<QQ", total, xxh3_64_intdigest(rest, total) ^ (rng.random() < _WRONG)) + rest + payload


def _fields(tree: Any) -> list[Any]:
    return (tree + [None] * 7)[:7] if isinstance(tree, list) else [None] * 7


def _agreement(fields: Any) -> bytes:
    magic, *numbers = (_list(fields) + [0] * 8)[:8]
    magic = magic if isinstance(magic, bytes) else b"gthr"
    return _AGREEMENT.pack(magic, *(_int(number, width) for number, width in zip(numbers, _WIDTHS[1:], strict=True)))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _int(value: Any, nbytes: int) -> int:
    return value & ((1 << 8 * nbytes) - 1) if isinstance(value, int) else 0


def _aligned(nbytes: int) -> int:
    return (nbytes + 63) & -64


class PartsFormat(Format):
    """Of the seed's wire: this rank, bytes per part, and all ranks' parts as [size, pickle]; None: the true size."""

    def read(self, case: Case) -> Any:
        how, _, buffer = case
        rank, num_parts, max_size = struct.unpack("<BBH", how)
        parts = [buffer[at : at + max_size] for at in range(0, num_parts * max_size, max_size)]
        return [rank, max_size, [[None, part[4 : 4 + int.from_bytes(part[:4], "big")]] for part in parts], b""]

    def write(self, tree: Any, rng: Random) -> Case:
        rank, max_size, parts, tail = (_list(tree) + [None] * 4)[:4]
        written = [_part(_list(part)) for part in _list(parts)[:255]]
        max_size = _int(max_size, 2) % 4096
        buffer = b"".join(part[:max_size].ljust(max_size, b"\0") for part in written)
        rank = _int(rank, 1)
        own = written[rank] if rank < len(written) and rng.random() > _WRONG else b"\0\0\0\1."
        how = struct.pack("<BBH", rank, len(written), max_size)
        return how, own, buffer + (tail if isinstance(tail, bytes) else b"")


def _part(part: list[Any]) -> bytes:
    size, content = [*part, None, b""][:2]
    content = content if isinstance(content, bytes) else b""
    return (len(content) if size is None else _int(size, 4)).to_bytes(4, "big") + content
