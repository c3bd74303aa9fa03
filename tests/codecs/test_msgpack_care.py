"""Objects that msgpack lowers only at the second look, and those that must not cost more for it."""

import sys
import threading
from collections.abc import Callable
from datetime import timedelta, timezone
from fractions import Fraction
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from gather_codecs import message_registry
from gather_codecs.messagepack import MessagePackCodec, register_type
from gather_core.errors import DecodeError, EncodeError, SettingsError

CODEC = MessagePackCodec()
Land = Callable[..., Any]


class Box:
    def __init__(self, inside: object) -> None:
        self.inside = inside

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and other.inside == self.inside

    __hash__ = object.__hash__


@pytest.fixture
def num_taken_apart(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a Box has been taken apart."""
    monkeypatch.setattr(message_registry, "_types", message_registry.RegisteredTypes())
    calls = [0]

    def take_apart(box: Box) -> object:
        calls[0] += 1
        return box.inside

    register_type("box", Box, to=take_apart, from_=Box)
    return calls


@pytest.mark.parametrize(
    "beside", ["\ud800", bytearray(b"x"), 1 << 70, object], ids=["surrogate", "bytearray", "int", "type"]
)
def test_nested_objects_are_looked_at_twice_at_most_whatever_is_beside_them(
    num_taken_apart: list[int], roundtrip: Any, beside: object
) -> None:
    obj: Any = []
    for _ in range(30):
        obj = Box((obj, [np.arange(2000)] if beside is not object else 1, beside))
    if beside is object:
        with pytest.raises(EncodeError, match=r"\$(\[0\])*\[2\]: "):
            CODEC.encode(obj)
    else:
        frames = CODEC.encode(obj)
        assert len(frames) == 31
    assert num_taken_apart[0] <= 60


def test_frames_are_neither_lost_nor_doubled_by_the_second_look(roundtrip: Any, assert_same: Any) -> None:
    obj = {(1, 2): [np.arange(5000), "\udfff"], 5: (bytearray(b"b"), np.ones(3000), {1 << 80: torch.zeros(900)})}
    assert_same(roundtrip(CODEC, obj), obj)


def test_a_million_nested_tuples_are_refused() -> None:
    obj: Any = ()
    for _ in range(1_000_000):
        obj = (obj,)

    def encode() -> None:
        with pytest.raises(EncodeError, match="deep"):
            CODEC.encode(obj)
        ended.set()

    ended = threading.Event()
    thread = threading.Thread(target=encode)
    thread.start()
    thread.join(60)
    assert ended.is_set()
    while obj:  # whole, it would be freed by recursion
        (obj,) = obj


def _colliding(count: int) -> list[int]:
    """Ints whose hashes differ, that a dict of 2**17 places looks for in one series of places.

    The first place is the low bits of the hash, each next one 5 times the last and 1, and 5 more bits of the hash.
    Keys that differ in no bit of the first five steps share these.
    """
    return [(number << 45) + 7 for number in range(count)]


def test_ints_that_collide_are_refused_or_read_in_time(land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = _colliding(100_000)
    assert CODEC.decode(land([msgpack.packb(dict.fromkeys(keys, 1))])) == dict.fromkeys(keys, 1)
    monkeypatch.setattr("gather_codecs.message_hashes._LEAST_BUDGET_S", -1.0)
    monkeypatch.setattr("gather_codecs.message_hashes._BUDGET_S_PER_KEY", 0.0)
    for head in (msgpack.packb(dict.fromkeys(keys, 1)), msgpack.packb(msgpack.ExtType(2, msgpack.packb(keys)))):
        with pytest.raises(DecodeError, match="collide"):
            CODEC.decode(land([head]))


@pytest.mark.parametrize(
    "obj",
    [
        Fraction(1 << 300_000, 3),
        range(1 << 300_000),
        range(0, 1 << 300_001, 1 << 300_000),
        Fraction(3, (1 << 300_000) + 1),
    ],
    ids=["numerator", "stop", "step", "denominator"],
)
def test_what_takes_long_to_build_is_refused_on_both_sides(land: Land, obj: Any) -> None:
    with pytest.raises(EncodeError, match="bits"):
        CODEC.encode([obj])
    parts = [obj.numerator, obj.denominator] if isinstance(obj, Fraction) else [obj.start, obj.stop, obj.step]
    packed = CODEC.encode(parts)[0]
    with pytest.raises(DecodeError, match="bits"):
        CODEC.decode(land([msgpack.packb(msgpack.ExtType(9 if isinstance(obj, Fraction) else 8, bytes(packed)))]))


@pytest.mark.parametrize("zone", [timezone(timedelta(0), "UTC"), timezone(timedelta(hours=1), "UTC+01:00")])
def test_an_offset_with_a_name_is_refused_also_where_it_is_the_usual_one(zone: timezone) -> None:
    import datetime as dt

    with pytest.raises(EncodeError, match=r"\$\[0\]: its time zone"):
        CODEC.encode([dt.datetime(2020, 1, 1, tzinfo=zone)])


class HasNoText:
    def __repr__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("obj", "path"),
    [
        ({10**5000: 1, "a": object()}, r"\$\.a: "),
        ({10**5000: object()}, r"\$\[<int>\]: "),
        ([memoryview(b"abc")[::-1]], r"\$\[0\]: "),
        ((1, [HasNoText()]), r"\$\[1\]\[0\]: "),
        ({"k" * 10_000: object()}, r"\$\['k{30,40}\]: "),
    ],
    ids=["beside a huge key", "under a huge key", "memoryview", "without text", "long key"],
)
def test_a_refusal_names_the_path_whatever_is_on_it(obj: object, path: str) -> None:
    with pytest.raises(EncodeError, match=path) as refused:
        CODEC.encode(obj)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "cls",
    [np.ndarray, np.float32, np.dtype, torch.Tensor, torch.Size, torch.device, torch.dtype, type(np.dtype("f4"))],
)
def test_classes_that_are_kept_already_cannot_be_registered(cls: type) -> None:
    with pytest.raises(SettingsError, match="already"):
        register_type("kept", cls, to=str, from_=cls)


def test_the_depth_is_the_same_for_all_containers(roundtrip: Any) -> None:
    for wrap in (lambda x: [x], lambda x: (x,), lambda x: {"a": x}, lambda x: frozenset([x]), lambda x: slice(x)):
        obj: Any = "x"
        for _ in range(101):
            obj = wrap(obj)
        assert repr(roundtrip(CODEC, obj)) == repr(obj)
        with pytest.raises(EncodeError, match="deep"):
            CODEC.encode(wrap(obj))


def test_python_s_own_recursion_limit_is_a_refusal() -> None:
    obj: Any = ()
    for _ in range(60):
        obj = (obj,)

    def below(frames: int) -> None:
        if frames:
            below(frames - 1)
        else:
            CODEC.encode(obj)

    with pytest.raises(EncodeError, match=r"recursion"):
        below(sys.getrecursionlimit() - 250)
