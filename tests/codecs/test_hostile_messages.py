"""MessagePack that claims, nests, collides or refers to what it should not: refused, in little memory, in time."""

from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

import hostile
from confined import Confined
from gather_core.errors import DecodeError

pytest_plugins = ["confined_fixture"]

_MIB = 1 << 20
TUPLE, SET, BIGINT, NDARRAY, TENSOR, COUNTER = 1, 2, 5, 20, 22, 18
PRIME = (1 << 61) - 1
"""Ints that differ by a multiple of it have one hash."""


def _ext(code: int, parts: object) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(parts)))
    return packed


def _wrapped(head: bytes, code: int) -> bytes:
    """An extension whose parts are one thing, in bytes."""
    packed: bytes = msgpack.packb(msgpack.ExtType(code, b"\x91" + head))
    return packed


def _map(keys: Sequence[bytes]) -> bytes:
    return b"\xdf" + len(keys).to_bytes(4, "big") + b"\x01".join([*keys, b""])


def _array(items: Sequence[bytes]) -> bytes:
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


CLAIMS = {
    "1024 deep arrays of a million": b"\xdd\x00\x10\x00\x00" * 1024 + bytes(_MIB),
    "1000 deep arrays of a million": b"\xdd\x00\x10\x00\x00" * 1000 + bytes(_MIB),
    "90 deep arrays of a million": b"\xdd\x00\x10\x00\x00" * 90 + bytes(_MIB),
    "90 deep maps of a million": b"\xdf\x00\x10\x00\x00" * 90 + bytes(_MIB),
    "1025 deep": b"\xdd\x00\x00\x00\x01" * 1025 + b"\xc0",
    "100,000 deep": b"\x91" * 100_000 + b"\xc0",
    "100,000 deep maps": b"\x81\x01" * 100_000 + b"\xc0",
    **{f"{head:x} of four billion": bytes([head]) + b"\xff" * 4 for head in (0xDF, 0xDD, 0xDB, 0xC6)},
    "an extension of four billion": b"\xc9\xff\xff\xff\xff\x01",
}


@pytest.mark.plan(52)
@pytest.mark.parametrize("where", ["alone", "padded", "in a list", "in a tuple"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_message_claims_takes_no_memory(confined: Confined, claim: str, where: str) -> None:
    head = CLAIMS[claim]
    frames = {"alone": head, "padded": head + bytes(1000), "in a list": b"\x91" + head}
    message = [frames[where] if where in frames else _wrapped(head, TUPLE)]
    hostile.refusal(confined.call(hostile.decode, "msgpack", message, more_nbytes=12 * _MIB))


def _nested(depth: int, code: int) -> bytes:
    head = b"\x01"
    for _ in range(depth):
        head = _wrapped(head, code)
    return head


@pytest.mark.plan(52)
@pytest.mark.parametrize("code", [TUPLE, SET, 3, 27, COUNTER, 19, 99])
@pytest.mark.parametrize("depth", [150, 2000])
def test_extensions_in_extensions_end_at_the_depth_limit(confined: Confined, code: int, depth: int) -> None:
    hostile.refusal(confined.call(hostile.decode, "msgpack", [_nested(depth, code)]))


@pytest.mark.plan(52)
@pytest.mark.parametrize("item", [b"\x90", b"\x80", _ext(TUPLE, [0]), _ext(SET, [])])
def test_many_small_things_are_an_object_or_an_error_within_memory(confined: Confined, item: bytes) -> None:
    """Each may take some hundred bytes, so that a megabyte may take a hundred; then the process must survive."""
    message = [_array([item] * (_MIB // len(item)))]
    assert len(message[0]) <= _MIB + 5
    assert confined.call(hostile.outcomes, "msgpack", [message], more_nbytes=400 * _MIB).result() == ["value"]
    outcome = confined.call(hostile.outcomes, "msgpack", [message], more_nbytes=4 * _MIB)
    assert outcome.result() == ["DecodeError"]
    assert confined.call(len, "alive").result() == 5


def _unsigned(number: int) -> bytes:
    return b"\xcf" + number.to_bytes(8, "big")


def _big(number: int) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(BIGINT, number.to_bytes(17, "little", signed=True)))
    return packed


COLLIDING = {
    "multiples of 2^44": [_unsigned(number << 44) for number in range(100_000)],
    "multiples of the hash's prime": [_unsigned(number * PRIME) for number in range(8)],
    "powers of two": [msgpack.packb(float(2.0 ** (61 * number))) for number in range(16)],
    "nan": [b"\xcb\x7f\xf8" + number.to_bytes(6, "big") for number in range(100_000)],
}


@pytest.mark.plan(53)
@pytest.mark.parametrize("keys", COLLIDING)
def test_plain_keys_that_collide_are_a_dict_and_a_set_in_time(confined: Confined, keys: str) -> None:
    packed = COLLIDING[keys]
    messages = [[_map(packed)], [msgpack.packb(msgpack.ExtType(SET, _array(packed)))]]
    outcome = confined.call(hostile.outcomes, "msgpack", messages, more_nbytes=256 * _MIB, within_s=60)
    assert outcome.result() == ["value", "value"]


@pytest.mark.plan(53)
@pytest.mark.parametrize("wrap", [lambda key: key, lambda key: _wrapped(key, TUPLE), lambda key: _wrapped(key, 3)])
@pytest.mark.parametrize("code", [None, SET, COUNTER], ids=["dict", "set", "Counter"])
def test_a_hundred_thousand_keys_of_one_hash_are_refused_in_time(
    confined: Confined, wrap: Any, code: int | None
) -> None:
    """Hashing and comparing them all with all would take minutes."""
    keys = [wrap(_big(number * PRIME)) for number in range(100_000, 200_000)]
    message = _array(keys) if code == SET else _map(keys)
    head = message if code is None else msgpack.packb(msgpack.ExtType(code, message))
    error = hostile.refusal(confined.call(hostile.decode, "msgpack", [head], more_nbytes=512 * _MIB, within_s=60))
    assert "share a hash" in str(error)


@pytest.mark.plan(53)
@pytest.mark.parametrize(
    "key", [b"\x90", b"\x80", _ext(TUPLE, [[]]), _ext(SET, []), _ext(NDARRAY, ["<i4", [0], "C", b""])]
)
def test_what_has_no_hash_is_no_key_and_no_item(confined: Confined, key: bytes) -> None:
    for head in (_map([key]), _map([key, b"\x01"]), _wrapped(key, SET), _wrapped(key, 3), _wrapped(_map([key]), TUPLE)):
        assert isinstance(hostile.refusal(confined.call(hostile.decode, "msgpack", [head])), DecodeError)


@pytest.mark.plan(53)
@pytest.mark.parametrize("twice", [(b"\x01", b"\x01"), (b"\x01", b"\xc3"), (b"\xa1a", b"\xa1a")], ids=str)
def test_an_item_that_is_twice_there_is_refused(confined: Confined, twice: tuple[bytes, bytes]) -> None:
    for code in (SET, 3):
        packed = msgpack.packb(msgpack.ExtType(code, _array(twice)))
        hostile.refusal(confined.call(hostile.decode, "msgpack", [packed]))


FOUR = b"abcd"
USES = [
    *([_ext(NDARRAY, ["<i4", [1], "C", number])] for number in (0, -1, 1, 2**32, 2**64 - 1, True, None, 1.0, "1")),
    *([_ext(TENSOR, ["int32", [1], False, number]), FOUR] for number in (0, -1, 2, None, True, "1")),
    *([b"\x92" + 2 * _ext(NDARRAY, ["<i4", [1], "C", 1]), FOUR], [b"\x01", FOUR], [b"\x90", b""]),
    *([_ext(NDARRAY, ["<i4", [1], "C", 1]), FOUR, FOUR], [_ext(NDARRAY, ["<i4", [1], "C", 2]), FOUR, FOUR]),
]


@pytest.mark.plan(54)
@pytest.mark.parametrize("message", USES)
def test_frames_that_are_missing_unused_or_used_twice_are_refused(confined: Confined, message: list[bytes]) -> None:
    hostile.refusal(confined.call(hostile.decode, "msgpack", message))


@pytest.mark.plan(54)
@pytest.mark.parametrize(
    "parts", [None, [], [1] * 3, [[]], {}, "x", b"", [None] * 9, [2**63] * 3, [b"\xff"] * 4], ids=str
)
def test_every_extension_with_parts_that_are_not_its_own_is_a_value_or_refused(confined: Confined, parts: Any) -> None:
    heads = [_ext(code, parts) for code in range(128)]

    seen = confined.call(hostile.outcomes, "msgpack", [[head] for head in heads]).result()
    assert set(seen[28:]) == {"DecodeError"}
    empty = [[msgpack.packb(msgpack.ExtType(code, b""))] for code in range(128)]
    assert "LimitError" not in confined.call(hostile.outcomes, "msgpack", empty).result()
    own = [[bytes([0xC7, 0, code])] for code in range(128, 256)]  # MessagePack's own, of which -1 is a timestamp
    assert set(confined.call(hostile.outcomes, "msgpack", own).result()) == {"DecodeError"}
