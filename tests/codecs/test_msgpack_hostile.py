"""MessagePackCodec against hostile bytes: a value or a DecodeError, soon and in little memory.

Numbers in comments and docstrings are those of the codecs' test plan.
"""

import datetime as dt
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gather_codecs.messagepack import MessagePackCodec
from gather_core.codec import DecodeOptions, Limits
from gather_core.errors import DecodeError, EncodeError, LimitError

Land = Callable[[Sequence[Any]], list[memoryview]]
BERLIN = ZoneInfo("Europe/Berlin")
CODEC = MessagePackCodec()


def _ext(code: int, parts: object) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(parts)))
    return packed


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"\xc1", b"\x01\x02", b"\x91", _ext(99, [])),
        *(
            _ext(20, ["O", [1], "C", bytes(8)]),
            _ext(20, ["V9999999", [1], "C", b""]),
            _ext(20, ["<i4,O", [1], "C", b""]),
        ),
        *(_ext(20, ["<i4", [-1, -4], "C", bytes(16)]), _ext(20, ["<i4", [2**62, 4], "C", b""])),
        *(
            _ext(20, ["<i4", [1] * 65, "C", bytes(4)]),
            _ext(20, ["<i4", 4, "C", bytes(4)]),
            _ext(20, ["<i4", [1], "X", bytes(4)]),
        ),
        *(
            _ext(20, ["<i4", [1], "C", 1]),
            _ext(20, ["<i4", [1], "C", 0]),
            _ext(20, ["<i4", [1], "C", -1]),
            _ext(20, []),
        ),
        *(_ext(22, ["load", [1], False, bytes(4)]), _ext(22, ["float32", [True], False, bytes(4)])),
        *(_ext(22, ["int64", [1], True, bytes(8)]), _ext(22, ["float32", "a", False, b""])),
        *(_ext(10, [1, 1, 1, 0, 0, 0, 0, "../../etc/passwd", 0]), _ext(10, [1]), _ext(11, [0, 0, 0]), _ext(13, "x")),
        *(_ext(2, [[]]), _ext(7, 2**40)[:-1], msgpack.packb(msgpack.ExtType(14, b"x")), _ext(15, [b"x", 0])),
        b"\x81" + _ext(2, []) + b"\x01",
        b"\xd4\xffx",
        # Of the types that later joined the table.
        *(
            _ext(8, [1, 2]),
            _ext(8, [0, 1, 0]),
            _ext(8, [0, 1.5, 1]),
            _ext(9, [1, 0]),
            _ext(9, [2, 4]),
            _ext(9, [1, -1]),
        ),
        *(_ext(16, ["Path", "x"]), _ext(16, ["PosixPath", 1]), _ext(17, [1]), _ext(18, [["a", 1]]), _ext(27, [1, 2])),
        *(_ext(23, ["load"]), _ext(23, [[]]), _ext(24, ["no such", 0]), _ext(24, ["cpu", "0"]), _ext(25, ["a"])),
        *(
            _ext(24, ["cuda:1", None]),
            _ext(26, ["O"]),
            _ext(26, ["<i4,O"]),
            _ext(26, []),
            _ext(19, ["p", 1]),
            _ext(19, []),
        ),
    ],
)
def test_malformed_messages_are_decode_errors(land: Land, head: bytes) -> None:
    """54 (unknown codes, wrong lengths, frame numbers), 62 (a zone outside the database)."""
    with pytest.raises(DecodeError):
        CODEC.decode(land([head]))


def test_frames_that_are_missing_unused_or_used_twice_are_refused(land: Land) -> None:
    """54."""
    head, frame = CODEC.encode(np.zeros(5000))
    twice = [msgpack.packb([msgpack.ExtType(20, msgpack.packb(["|i1", [4], "C", 1]))] * 2), b"abcd"]
    for frames in ([], [head], [head, frame, b""], [head, bytes(memoryview(frame)[1:])], twice):
        with pytest.raises(DecodeError):
            CODEC.decode(land(frames))


def _nested_headers() -> bytes:
    return b"\xdd\x00\x10\x00\x00" * 900 + bytes(1 << 20)


def _deep_headers() -> bytes:
    return b"\xdd\x00\x00\x00\x01" * 1025 + b"\xc0"


def _nested_tuples() -> bytes:
    head = msgpack.packb(1)
    for _ in range(500):
        head = msgpack.packb([msgpack.ExtType(1, head)])
    return bytes(head)


@pytest.mark.parametrize(
    "bomb", [_nested_headers(), _deep_headers(), b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", _nested_tuples()]
)
def test_claimed_lengths_allocate_nothing(land: Land, bomb: bytes) -> None:
    """52."""
    frames = land([bomb])
    tracemalloc.start()
    try:
        with pytest.raises((DecodeError, LimitError)):
            CODEC.decode(frames)
        assert tracemalloc.get_traced_memory()[1] < 16 * len(bomb) + 1_000_000
    finally:
        tracemalloc.stop()


def test_nested_extensions_hold_no_more_copies_than_the_payload_limit(land: Land) -> None:
    obj: Any = b"x" * 1_000_000
    for _ in range(100):
        obj = (obj,)
    frames = land(CODEC.encode(obj))
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match="nested copies"):
            CODEC.decode(frames, DecodeOptions(limits=Limits(payload_nbytes=4_000_000)))
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert CODEC.decode(frames) == obj


def test_extensions_side_by_side_are_within_the_payload_limit_together(land: Land) -> None:
    obj = [((b"x" * 1000,),)] * 1000
    frames = land(CODEC.encode(obj))
    limits = Limits(payload_nbytes=sum(map(len, frames)))
    assert CODEC.decode(frames, DecodeOptions(limits=limits)) == obj


VALID = [
    bytes(memoryview(frame).cast("B"))
    for frame in CODEC.encode(
        [
            {"a": (1, 2.5), (1,): {2}},
            2**70,
            dt.datetime.now(BERLIN),
            Decimal("1.5"),
            np.arange(3),
            torch.ones(2, 2),
            np.arange(1000),
            uuid.uuid4(),
            1j,
            np.float32(1),
            bytearray(b"x"),
            dt.timedelta(1),
            *(slice(1), range(3), Fraction(1, 3), Path("a"), Counter(a=1), torch.float32, torch.Size([1])),
        ]
    )
]


@given(st.data())
def test_any_mutation_is_a_value_or_a_decode_error(data: st.DataObject) -> None:
    head = bytearray(VALID[0])
    for _ in range(data.draw(st.integers(1, 3))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    head = head[: data.draw(st.sampled_from([len(head), data.draw(st.integers(0, len(head)))]))]
    with suppress(DecodeError):
        CODEC.decode([memoryview(bytes(head)), memoryview(VALID[1])])


def _dict_of(keys: Sequence[bytes]) -> bytes:
    return b"\xdf" + len(keys).to_bytes(4, "big") + b"\x01".join([*keys, b""])


PRIME = (1 << 61) - 1
"""Of which the multiples are ints of one hash."""


@pytest.mark.parametrize(
    "head",
    [
        *(_ext(2, [1, True]), _ext(3, [1, 1]), _ext(3, [{}])),
        *(_dict_of([b"\x90"]), _dict_of([b"\x80"]), _dict_of([_ext(1, [[]])]), _ext(17, {(): 1})),
    ],
)
def test_items_that_are_twice_there_and_what_cannot_be_hashed_are_refused(land: Land, head: bytes) -> None:
    """53."""
    with pytest.raises(DecodeError):
        CODEC.decode(land([head]))


@pytest.mark.parametrize("key", [b"\x01", b"\xa1a", _ext(1, [1])])
def test_of_a_key_that_is_twice_there_the_last_value_counts(land: Land, key: bytes) -> None:
    """53: as in MessagePack itself; encode never writes it."""
    twice = CODEC.decode(land([b"\x82" + key + b"\x05" + key + b"\x06"]))
    assert isinstance(twice, dict)
    assert list(twice.values()) == [6]


def test_keys_of_one_hash_are_refused_before_they_are_put_together(land: Land) -> None:
    """53: each would be compared with all before it."""
    keys = [_big(number * PRIME) for number in range(100_000, 200_000)]
    for head in (
        _dict_of(keys),
        msgpack.packb(msgpack.ExtType(2, b"\xdd" + (100_000).to_bytes(4, "big") + b"".join(keys))),
    ):
        with pytest.raises(DecodeError, match="share a hash"):
            CODEC.decode(land([head]))


def _big(number: int) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(5, number.to_bytes(17, "little", signed=True)))
    return packed


def test_what_could_not_be_decoded_is_not_encoded() -> None:
    """53, from the other side."""
    few, many = ({number * PRIME: 1 for number in range(count)} for count in (250, 300))
    assert CODEC.decode([memoryview(CODEC.encode(few)[0])]) == few
    for obj in (many, set(many), frozenset(many)):
        with pytest.raises(EncodeError, match=r"\$\[0\]: too many of its .* share a hash"):
            CODEC.encode([obj])


def test_values_of_one_hash_come_back_where_they_are_no_keys(roundtrip: Any) -> None:
    """Also beside dicts of keys that are not crowded."""
    numbers = [number * PRIME for number in range(300)]
    obj = [numbers, {(number,): number for number in range(300)}, dict.fromkeys(numbers[:250], 1)]
    assert roundtrip(CODEC, obj) == obj


def test_a_zone_is_looked_for_in_the_database_only(land: Land) -> None:
    """62."""
    for key in ("../../etc/passwd", "/etc/passwd", "no such zone"):
        with pytest.raises(DecodeError, match="ZoneInfo"):
            CODEC.decode(land([_ext(10, [1, 1, 1, 0, 0, 0, 0, key, 0])]))
