"""Plain data: what every codec for it keeps, whether it pickles or builds data only."""

import datetime as dt
import enum
import math
import struct
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import pytest
import torch

from every_codec import EVERY, MSGPACK, PICKLES, STRUCTURED
from gather_codecs import message_registry
from gather_codecs.message_registry import RegisteredTypes
from gather_codecs.messagepack import register_type
from gather_core.codec import Codec
from gather_core.errors import EncodeError
from gather_core.registry import get_codec


@pytest.fixture(params=STRUCTURED)
def codec(request: pytest.FixtureRequest) -> Codec:
    return get_codec(request.param)


def _float(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value


EDGES = [2**63, 2**64, 2**4000]
SCALARS = [
    *(None, True, False, 0, -1, 1, 127, -128, 255, 2**31, 2**32, 0.1, 5e-324, 1e308, "", "text", b"", b"\xff\0", 1j),
    *(sign * edge + more for edge in EDGES for sign in (1, -1) for more in (-1, 0, 1)),
]
FLOATS = [math.nan, -math.nan, -0.0, math.inf, -math.inf, *map(_float, (0x7FF8000000000001, 0xFFF4000000000ABC))]


@pytest.mark.plan(1)
def test_scalars_come_back(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    for scalar in SCALARS:
        assert_same(roundtrip(codec, scalar), scalar)
    assert_same(roundtrip(codec, SCALARS), SCALARS)


@pytest.mark.plan(2)
def test_floats_come_back_bit_for_bit(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    numbers = [*FLOATS, *(complex(real, imag) for real in FLOATS for imag in FLOATS)]
    assert_same(roundtrip(codec, numbers), numbers)


@pytest.mark.plan(3)
def test_keys_that_look_alike_stay_apart(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    alike = {1: "int", "1": "str", (1, 2): "tuple", None: 0, b"k": b"k", "k": "k", 2.5: 0, math.nan: math.nan}
    for mapping in (alike, {True: "bool"}, {1: "int"}, {1.0: "float"}, {(True, 1.0): {False: 0}}):
        assert_same(roundtrip(codec, mapping), mapping)


def _alternately_nested(depth: int) -> Any:
    nested: Any = depth
    for level in range(depth):
        nested = [nested, level] if level % 2 else (nested, level)
    return nested


@pytest.mark.plan(4)
def test_tuples_and_lists_stay_what_they_are(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    obj = [_alternately_nested(5), (_alternately_nested(6),), {((1, (2,)), ()): [()]}, (), [], {}, set(), frozenset()]
    assert_same(roundtrip(codec, obj), obj)


@pytest.mark.plan(5)
def test_nested_sets_come_back(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    obj = [{1, "a", (2, frozenset({3, frozenset()}))}, frozenset({frozenset({"x"})}), {True}, {1.0}, set()]
    assert_same(roundtrip(codec, obj), obj)


@pytest.mark.plan(6)
def test_text_comes_back(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    texts = ["\ud800", "a\udfffb", "\ude00\ud83d", "\0", "a\0b\0", "𝄞\U0010ffff", "é" * 40_000, "\ud800" * 2000]
    assert_same(roundtrip(codec, [texts, dict.fromkeys(texts)]), [texts, dict.fromkeys(texts)])


IST, BERLIN = dt.timezone(dt.timedelta(hours=5, minutes=30)), ZoneInfo("Europe/Berlin")
TIMES = [
    *(dt.datetime(2024, 2, 29, 1, 2, 3, 999_999), dt.datetime(1, 1, 1), dt.datetime.max, dt.datetime.min),
    *(dt.datetime(2024, 5, 1, tzinfo=zone) for zone in (dt.UTC, IST, BERLIN)),
    *(dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)),
    *(dt.datetime(1, 1, 1, tzinfo=IST), dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, dt.UTC)),
    *(dt.timedelta(-1, 5, 7), dt.timedelta.min, dt.timedelta.max, dt.date.max, dt.time(23, 59, fold=1)),
    *map(Decimal, ("NaN", "-NaN123", "1E+400", "1.50", "-0", "Infinity", "1E-400")),
]


@pytest.mark.plan(7)
@pytest.mark.parametrize("moment", TIMES, ids=str)
def test_times_and_decimals_come_back(codec: Codec, roundtrip: Any, assert_same: Any, moment: Any) -> None:
    back = roundtrip(codec, moment)
    assert_same(back, moment)
    if isinstance(moment, dt.datetime):
        assert (back.utcoffset(), back.fold, type(back.tzinfo)) == (
            moment.utcoffset(),
            moment.fold,
            type(moment.tzinfo),
        )


@pytest.mark.plan(8)
@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.parametrize("content", [b"", b"x", b"x" * 300_000], ids=len)
def test_bytes_likes_arrive_as_what_they_are_or_are_refused(
    spec: str, content: bytes, roundtrip: Any, assert_same: Any
) -> None:
    codec = get_codec(spec)
    for obj in (content, bytearray(content)):
        assert_same(roundtrip(codec, obj), obj)
    for view in (memoryview(content), memoryview(bytearray(content))):
        if spec.startswith("raw"):
            assert_same(roundtrip(codec, view), view)
        else:
            with pytest.raises((EncodeError, TypeError), match="memoryview"):
                codec.encode(view)


@pytest.mark.plan(8)
@pytest.mark.parametrize("spec", ["pickle", "cloudpickle", "auto"])
def test_an_open_file_is_refused_and_a_standard_stream_is_none(
    spec: str, roundtrip: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where cloudpickle would send the text of the file."""
    codec = get_codec(spec)
    (tmp_path / "text").write_text("text")
    with (tmp_path / "text").open() as file:
        with pytest.raises(TypeError, match="cannot pickle"):
            codec.encode([file])
        if spec != "pickle":
            monkeypatch.setattr(sys, "stderr", file)
            assert roundtrip(codec, [file])[0] is file


Point = namedtuple("Point", "x y")


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Record:
    x: object
    y: int = 2


SPECIAL: list[Any] = [
    *(OrderedDict(z=1, a=2), Counter("abca"), defaultdict(list, {1: [2]}), Point(1, (2,)), Level.LOW, Record([1])),
]


@pytest.mark.plan(9)
@pytest.mark.parametrize("obj", SPECIAL, ids=lambda obj: type(obj).__name__)
def test_subclasses_of_plain_types_stay_exactly_that_or_are_refused(
    codec: Codec, roundtrip: Any, assert_same: Any, obj: Any
) -> None:
    if codec.spec.startswith("msgpack") and type(obj) not in (OrderedDict, Counter):
        with pytest.raises(EncodeError, match=rf"\$\.a\[0\]: it keeps no .*{type(obj).__name__}"):
            codec.encode({"a": [obj]})
    else:
        assert_same(roundtrip(codec, {"a": [obj]}), {"a": [obj]})


@pytest.mark.plan(10)
def test_dicts_keep_their_order(codec: Codec, roundtrip: Any) -> None:
    keys = [*"zamk", 3, 1, 2, (1,), *map(str, range(2000, 0, -1))]
    back = roundtrip(codec, {key: dict.fromkeys(keys[::-1], 0) for key in keys})
    assert list(back) == keys
    assert all(list(inner) == keys[::-1] for inner in back.values())


@pytest.mark.plan(11)
@pytest.mark.parametrize("code", [0, 1, 5, 19, 20, 22, 127])
def test_an_extension_of_the_users_is_no_extension_of_the_codec(
    codec: Codec, roundtrip: Any, assert_same: Any, code: int
) -> None:
    obj = [msgpack.ExtType(code, msgpack.packb([1, 2]))]
    if codec.spec.startswith("msgpack"):
        with pytest.raises(EncodeError, match=r"\$\[0\]: it keeps no .*ExtType"):
            codec.encode(obj)
    else:
        assert_same(roundtrip(codec, obj), obj)


@pytest.mark.plan(12)
def test_data_that_imitates_a_tag_is_data(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    packed = msgpack.packb(msgpack.ExtType(1, msgpack.packb([1])))
    imitations: list[Any] = [["tuple", [1]], [1, [2]], [27, b""], ["__tensor__", 0], ["builtins", "eval"], ["bytes"]]
    imitations += [packed, [packed], {"__type__": "set", "items": [1]}, {"code": 1, "data": b""}, b"\x80\x05N.", [-1]]
    for obj in (*imitations, imitations, {"x": imitations}):
        assert_same(roundtrip(codec, obj), obj)


class Batch:
    def __init__(self, ids: Any, more: Any) -> None:
        self.ids, self.more = ids, more


@pytest.mark.plan(13)
def test_an_object_with_tensors_inside_comes_back(
    codec: Codec, roundtrip: Any, assert_same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_registry, "_types", RegisteredTypes())
    register_type("batch", Batch, lambda batch: [batch.ids, batch.more], lambda parts: Batch(*parts))
    batch = Batch(torch.arange(3000), {"scores": [torch.ones(2, 3).bfloat16()], "inner": Batch(torch.zeros(0), None)})
    assert_same(roundtrip(codec, [batch]), [batch])
    assert type(roundtrip(codec, batch)) is Batch


def test_the_specs_are_those_of_the_codecs_that_there_are() -> None:
    assert {get_codec(spec).spec for spec in EVERY} == set(EVERY)
    assert set(PICKLES) | set(MSGPACK) == set(STRUCTURED)
