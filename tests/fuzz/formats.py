"""Codecs' formats as trees: read what the codec wrote, write what no codec would.

A codec that has no format here is fuzzed by its bytes and frames alone.
"""

import json
import struct
import zlib
from abc import ABC, abstractmethod
from functools import cache
from random import Random
from typing import Any

import msgpack
import zstandard

from fuzz.byte_mutations import Case
from fuzz.trees import Ext, Map, Prefixed

_LIE = 0.02
"""How often a length is written that is not true."""
_STORED = (1 << 64) - 1
_BOMB_NBYTES = 96 << 20
_TUPLE, _SET, _BIGINT, _FRACTION = 1, 2, 5, 9
"""Codes of extensions of msgpack's."""
_HASH_PRIME = (1 << 61) - 1
"""Of which the multiples are ints of one hash."""
_FEW, _MANY = 270, 25_000


class Format(ABC):
    """How the frames of one codec are seen as a tree."""

    @abstractmethod
    def read(self, case: Case) -> Any:
        """The tree.

        Raises:
            Exception: Whatever it is, these bytes are too damaged to be seen as one.
        """

    def hostile_trees(self) -> list[Any]:
        """What mutations would hardly come upon."""
        return []

    @abstractmethod
    def write(self, tree: Any, rng: Random) -> Case:
        """Frames of a tree, which may have been mutated beyond what `read` returns."""


def format_of(spec: str) -> Format | None:
    """The format of a codec, by its spec; None where there is none here."""
    first, *wrappers = (part.partition(":")[0] for part in spec.split("+"))
    found = {"msgpack": MessageFormat(), "raw": RawFormat()}.get(first)
    for wrapper in wrappers:
        found = ZstdFormat(found) if wrapper == "zstd" else None
    return found


class MessageFormat(Format):
    """A message, whose extensions hold messages, and the frames that it refers to."""

    def read(self, case: Case) -> Any:
        return [_read_message(case[0]), *case[1:]]

    def hostile_trees(self) -> list[Any]:
        keys = [_crowd(_FEW), _crowd(_MANY)]
        crowds: list[Any] = [
            crowd for few in keys for crowd in (Map([[key, None] for key in few]), Ext(_SET, few), [few])
        ]
        crowds.append([crowds[3]])  # whichever of the two meets tight limits
        big = [Ext(_BIGINT, b"\1" * 40_000), Ext(_BIGINT, b"\3" * 40_000)]
        return [[tree] for tree in (_deep(103), _deep(110), Ext(_FRACTION, big), *crowds)]

    def write(self, tree: Any, rng: Random) -> Case:
        head, *frames = tree if isinstance(tree, list) and tree else [tree]
        return (_write_message(head, rng), *(frame for frame in frames if isinstance(frame, bytes)))


def _deep(levels: int) -> Any:
    tree: Any = 1
    for _ in range(levels):
        tree = Ext(_TUPLE, [tree])
    return tree


def _crowd(count: int) -> list[Any]:
    """Keys that share a hash."""
    return [Ext(_BIGINT, (number * _HASH_PRIME).to_bytes(11, "little")) for number in range(100, 100 + count)]


def _read_message(data: bytes) -> Any:
    if data[:1] == b"\xc1":
        return Prefixed(data[:1], _read_message(data[1:]))
    return msgpack.unpackb(
        data,
        strict_map_key=False,
        unicode_errors="surrogatepass",
        ext_hook=lambda code, content: Ext(code, _read_content(content)),
        object_pairs_hook=lambda pairs: Map([list(pair) for pair in pairs]),
        timestamp=1,
    )


def _read_content(data: bytes) -> Any:
    """What an extension holds: a message, or bytes of its own."""
    try:
        found = _read_message(data)
    except Exception:
        return data
    return found if isinstance(found, list | Map | Ext | Prefixed) else data


def _write_message(tree: Any, rng: Random) -> bytes:
    packer = msgpack.Packer(strict_types=True, unicode_errors="surrogatepass", autoreset=False)
    _pack(packer, tree, rng, 0)
    packed: bytes = packer.bytes()
    return packed


def _pack(packer: Any, node: Any, rng: Random, depth: int) -> None:
    if depth > 400:
        packer.pack(None)
    elif isinstance(node, list):
        packer.pack_array_header(_length(len(node), rng))
        for item in node:
            _pack(packer, item, rng, depth + 1)
    elif isinstance(node, Map):
        packer.pack_map_header(_length(len(node.pairs), rng))
        for key, value in node.pairs:
            _pack(packer, key, rng, depth + 1)
            _pack(packer, value, rng, depth + 1)
    elif isinstance(node, Ext):
        content = node.content if isinstance(node.content, bytes) else _write_message(node.content, rng)
        packer.pack_ext_type(node.code, content[: 1 << 18])
    elif isinstance(node, Prefixed):
        _pack(packer, node.content, rng, depth + 1)
    else:
        packer.pack(_in_64_bits(node) if type(node) is int else node)


def _length(length: int, rng: Random) -> int:
    lie = rng.random() < _LIE / max(length, 5)
    return rng.choice((length + 1, max(length - 1, 0), (1 << 32) - 1, 1 << 20)) if lie else length


def _in_64_bits(number: int) -> int:
    return number if -(1 << 63) <= number < 1 << 64 else number & ((1 << 64) - 1)


class RawFormat(Format):
    """The list in the head, and the elements."""

    def read(self, case: Case) -> Any:
        head, elements = case
        return [json.loads(head[4:], object_pairs_hook=lambda pairs: Map([list(pair) for pair in pairs])), elements]

    def write(self, tree: Any, rng: Random) -> Case:
        head, *frames = tree if isinstance(tree, list) and tree else [tree]
        text = json.dumps(_as_json(head)).encode("ascii")
        checksum = zlib.crc32(text) ^ (rng.random() < _LIE)
        return (struct.pack("<I", checksum) + text, *(frame for frame in frames if isinstance(frame, bytes)))


def _as_json(node: Any) -> Any:
    if isinstance(node, list):
        return [_as_json(item) for item in node]
    if isinstance(node, Map):
        return {str(key): _as_json(value) for key, value in node.pairs}
    if isinstance(node, Ext | Prefixed):
        return _as_json(node.content)
    return node.decode("latin-1") if isinstance(node, bytes) else node


class ZstdFormat(Format):
    """The tree of what is inside; where that has no format, its frames as bytes."""

    def __init__(self, inner: Format | None) -> None:
        self._inner = inner

    def read(self, case: Case) -> Any:
        table, *stored = case
        sizes = struct.unpack(f"<{len(stored)}Q", table)
        frames = tuple(_unpacked(frame, size) for frame, size in zip(stored, sizes, strict=True))
        return list(frames) if self._inner is None else self._inner.read(frames)

    def write(self, tree: Any, rng: Random) -> Case:
        frames = self._write_inner(tree, rng)
        packed = [_packed(frame, rng) for frame in frames]
        sizes = [size for size, _ in packed]
        if sizes and rng.random() < 5 * _LIE:
            at = rng.randrange(len(sizes))
            sizes[at] = rng.choice((0, sizes[at] ^ 1, 1 << 20, _STORED, _STORED - 1, 1 << 63, len(frames[at])))
        return (struct.pack(f"<{len(sizes)}Q", *sizes), *(frame for _, frame in packed))

    def hostile_trees(self) -> list[Any]:
        return [] if self._inner is None else self._inner.hostile_trees()

    def _write_inner(self, tree: Any, rng: Random) -> Case:
        if self._inner is not None:
            return self._inner.write(tree, rng)
        return tuple(frame for frame in tree if isinstance(frame, bytes)) if isinstance(tree, list) else ()


def _unpacked(frame: bytes, size: int) -> bytes:
    if size == _STORED:
        return frame
    if size > 1 << 18:
        raise ValueError("too large to be mutated")
    return zstandard.ZstdDecompressor().decompress(frame)


def _packed(frame: bytes, rng: Random) -> tuple[int, bytes]:
    """What the table says of a frame, and how it travels."""
    draw = rng.random()
    if draw < 0.005:
        return _BOMB_NBYTES, _bomb()
    if draw < 0.3:
        return _STORED, frame
    packed = _compressor(rng.random() < 0.1).compress(frame)
    if draw < 0.33:
        packed += rng.choice((_skippable(rng), packed, b"\0"))
    elif draw < 0.36:
        packed = packed[: rng.randrange(len(packed) + 1)]
    return len(frame), packed


def _skippable(rng: Random) -> bytes:
    length = rng.randrange(20)
    return struct.pack("<II", 0x184D2A50, length) + bytes(length)


@cache
def _compressor(with_checksum: bool) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=1, write_checksum=with_checksum)


@cache
def _bomb() -> bytes:
    """A frame that is far smaller than the memory that it asks for."""
    return zstandard.ZstdCompressor(level=1).compress(bytes(_BOMB_NBYTES))
