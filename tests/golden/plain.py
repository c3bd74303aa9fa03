"""Golden objects of the standard library, each built anew by a function. Add some, never change any."""

import datetime as dt
import struct
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from zoneinfo import ZoneInfo

Makers = dict[str, Callable[[], object]]

_NAN = struct.unpack("<d", b"\x01\0\0\0\0\0\xf8\x7f")[0]
_EAST = dt.timezone(dt.timedelta(hours=5, minutes=45, seconds=1))

PLAIN: Makers = {
    "none": lambda: None,
    "bools": lambda: [True, False],
    "ints": lambda: [0, -1, 127, -128, 128, 2**31, -(2**31), 2**32, 2**63, -(2**63), 2**64 - 1],
    "floats": lambda: [0.1, -0.0, float("inf"), 5e-324, _NAN],
    "text": lambda: ["", "a", "t\u00e9xt \0 \U0001f600", "x" * 300],
    "bytes": lambda: [b"", b"\0\xff", b"y" * 300],
    "lists": lambda: [[], [[1], [[2.5], None]]],
    "dicts": lambda: {"z": 1, "a": {"": {}}, "m": [{}]},
    "keys": lambda: {1: "int", "1": "text", b"1": "bytes", 2.5: "float", None: "none", False: "bool"},
}
"""What MessagePack has itself."""

VALUES: Makers = {
    "large_ints": lambda: [2**64, -(2**63) - 1, 10**40],
    "complex": lambda: [1j, complex(-0.0, _NAN)],
    "lone_surrogate": lambda: {"\ud800": "a\udfffb"},
    "bytearray": lambda: [bytearray(), bytearray(b"\0\xff")],
    "tuples": lambda: ((), (1, (2, [()]))),
    "sets": lambda: [set(), {"a"}, frozenset(), frozenset({(1, "b")})],
    "slice": lambda: [slice(3), slice(None, 2.5, (1,))],
    "range": lambda: [range(0), range(7, -(2**80), -3)],
    "odd_keys": lambda: {(1, 2): 2, frozenset({3}): 3, 2**70: 4, dt.date(2024, 2, 29): 5},
    "ordered_dict": lambda: OrderedDict(z=1, a=[OrderedDict()]),
    "counter": lambda: Counter({"x": 2, "y": -1}),
    "datetime": lambda: [
        dt.datetime(2024, 10, 27, 2, 30, 0, 5, fold=1),
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=_EAST),
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=dt.UTC),
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    ],
    "date": lambda: dt.date(1, 1, 1),
    "time": lambda: [dt.time(1, 2, 3, 4, fold=1), dt.time(23, 59, tzinfo=_EAST)],
    "timedelta": lambda: [dt.timedelta(-1, 5, 6), dt.timedelta.max],
    "decimal": lambda: [Decimal("1.50"), Decimal("-0"), Decimal("NaN"), Decimal("1E+400")],
    "fraction": lambda: Fraction(-7, 3),
    "uuid": lambda: uuid.UUID(int=0x0123456789ABCDEF0123456789ABCDEF),
    "paths": lambda: [Path("a/../b"), PurePosixPath("\u00e9\udcff"), PureWindowsPath("C:/x", "y")],
}
"""What MessagePack lacks."""
