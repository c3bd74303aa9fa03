"""Objects of every type that the built-in DATA codecs keep, whose encodings the fuzzer starts from."""

import datetime as dt
import enum
import math
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath, PureWindowsPath
from typing import NamedTuple
from unittest import mock
from zoneinfo import ZoneInfo

import numpy as np
import torch

from gather_codecs import message_registry
from gather_codecs.messagepack import register_type


class Color(enum.Enum):
    """Travels by name."""

    RED = 1
    BLUE = "b"


class Flags(enum.Flag):
    """Travels by value."""

    A = 1
    B = 2


class Point(NamedTuple):
    """Travels by field."""

    x: object
    y: object


@dataclass
class Batch:
    """Travels by field."""

    ids: object
    note: object


class Pair:
    """Travels through functions."""

    def __init__(self, *items: object) -> None:
        self.items = list(items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pair) and self.items == other.items


def _pair(items: object) -> object:
    return Pair(*items) if isinstance(items, list) else items


REGISTERED = (Color, Flags, Point, Batch, Pair)


@contextmanager
def registered() -> Iterator[None]:
    """The classes above are known to msgpack, and no others."""
    with mock.patch.object(message_registry, "_types", message_registry.RegisteredTypes()):
        register_type("fuzz.color", Color)
        register_type("fuzz.flags", Flags)
        register_type("fuzz.point", Point)
        register_type("fuzz.batch", Batch)
        register_type("fuzz.pair", Pair, to=lambda pair: pair.items, from_=_pair)
        yield


def seed_objects() -> list[object]:
    """What is encoded; a codec refuses those that it does not keep."""
    return [*_PLAIN, *_STANDARD, *_numpy(), *_torch(), *_BYTES, *_REGISTERED, [*_PLAIN, *_STANDARD, *_torch()]]


_PLAIN: list[object] = [
    *(None, True, 0, -1, 2**63, 2**64 - 1, -(2**63), 1.5, -0.0, math.nan, "", "é\0", "\ud800", [], {}, [[[]]]),
    *({"a": [1, None], 2: b"x", None: {b"k": 2.5}}, list(range(300)), dict.fromkeys(range(300), "v")),
    *(["x" * 40, b"y" * 600], [[number, str(number)] for number in range(70)]),
]
_STANDARD: list[object] = [
    *((), (1, (2, ())), {1}, frozenset({(2, None)}), {(1, 2): {3}}, 2**64, -(2**200), 1j, bytearray(b"ba")),
    *(range(1, 9, 2), slice(None, 2, "x"), Fraction(-7, 3), Decimal("1.50"), Decimal("NaN"), uuid.UUID(int=5)),
    *(
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        dt.date(1, 1, 1),
        dt.timedelta(-1, 5),
    ),
    *(dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5))), dt.time(23, 59, 1, 2), dt.datetime(9999, 1, 1)),
    *(PurePosixPath("a/b"), PureWindowsPath("C:/x"), OrderedDict(b=1, a=[2]), Counter("abca"), {1: (Counter(),)}),
    *(set(range(300)), tuple(range(300)), {(number,): number for number in range(270)}),
]
_BYTES: list[object] = [b"", b"bytes" * 9, bytearray(b"ba"), memoryview(b"view"), bytes(20_000)]
_REGISTERED: list[object] = [
    *(Color.RED, Flags.A | Flags.B, Point(1, (2,)), Batch([1, 2], "n"), Pair(1, 2.5)),
    [Color.BLUE, Point(Batch(np.arange(3), torch.ones(2)), Pair())],
]


def _numpy() -> list[object]:
    return [
        *(np.arange(6, dtype=">i4")[::-2], np.zeros((0, 3)), np.array(2.5), np.arange(6.0).reshape(2, 3).T),
        *(np.array(["2020-01-01", "NaT"], dtype="M8[ns]"), np.arange(400.0), [np.arange(300), np.ones((9, 40))]),
        *(np.float32(1.5), np.bool_(True), np.datetime64("2020-01-01"), np.dtype("<f4"), np.complex64(1j)),
        *(np.array(["é", "ab"]), np.array([b"a"]), np.zeros(3, "V5"), np.zeros(2, np.dtype("i1, (2,)i8", align=True))),
        *(memoryview(bytearray(24)).cast("d", (1, 3)), np.arange(3000)),
    ]


def _torch() -> list[object]:
    return [
        *(torch.tensor(5.0), torch.zeros(0, 3), torch.ones(3, requires_grad=True), torch.arange(12).reshape(3, 4).t()),
        *(torch.ones(2, 3).to(torch.bfloat16), torch.ones(4).to(torch.float8_e5m2), torch.tensor([1 + 2j])),
        *(torch.arange(300), torch.float32, torch.qint8, torch.device("cpu"), torch.device("cuda:1"), torch.Size([2])),
    ]
