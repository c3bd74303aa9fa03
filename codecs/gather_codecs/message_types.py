"""The table of extension types: the types that MessagePack lacks, each with its code, its parts, and how it is rebuilt.

Codes are part of the wire. What is here holds plain values only; containers, arrays and tensors are lowered and rebuilt
by `message_lowering.py` and `message_rebuild.py`.
"""

import dataclasses
import datetime as dt
import math
import pathlib
import sys
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from gather_codecs.dtypes import Description, build_dtype, describe_dtype
from gather_codecs.message_paths import Refusal
from gather_core.errors import DecodeError

MAX_DEPTH = 100
_MAX_BITS = 1 << 18
"""Dividing larger ints, as ranges and fractions do when they are made, takes long."""

TUPLE, SET, FROZENSET, BIGINT, COMPLEX, BYTEARRAY = 1, 2, 3, 5, 6, 7
_RANGE, _FRACTION = 8, 9
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID, _PATH = 10, 11, 12, 13, 14, 15, 16
ORDERED_DICT, COUNTER, REGISTERED = 17, 18, 19
NDARRAY, NUMPY_SCALAR, TENSOR = 20, 21, 22
_TORCH_DTYPE, _TORCH_DEVICE, _TORCH_SIZE, _NUMPY_DTYPE = 23, 24, 25, 26
SLICE = 27

PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""Packed as they are."""
CODE_OF_SET: dict[type, int] = {set: SET, frozenset: FROZENSET}
CODE_OF_MAPPING: dict[type, int] = {OrderedDict: ORDERED_DICT, Counter: COUNTER}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """How one type travels."""

    code: int
    lower: Callable[[Any], Any]
    """Returns its bytes, or a list of plain values; or raises `Refusal`."""
    rebuild: Callable[[Any], Any]
    """Takes what `lower` returned; raises whatever it likes where that cannot be."""
    is_bytes: bool = False


def is_built_in(cls: type) -> bool:
    """Whether objects of exactly this class are kept without its being registered."""
    of_numpy = cls is np.ndarray or issubclass(cls, np.generic) or issubclass(cls, np.dtype)
    of_torch = leaf_of(cls) is not None or cls is getattr(sys.modules.get("torch"), "Tensor", None)
    of_python = any(
        cls in kinds for kinds in (PLAIN, (list, dict, tuple, slice), CODE_OF_SET, CODE_OF_MAPPING, _LEAVES)
    )
    return of_python or of_numpy or of_torch


def leaf_of(kind: type) -> Leaf | None:
    """How exactly this type travels; None if it is not in the table."""
    leaf = _LEAVES.get(kind)
    if leaf is None and issubclass(kind, np.dtype):
        return _NUMPY_DTYPE_LEAF
    if leaf is None and (torch := sys.modules.get("torch")) is not None and kind.__module__ == "torch":
        return next((leaf for name, leaf in _TORCH_LEAVES.items() if kind is getattr(torch, name, None)), None)
    return leaf


def leaf_with_code(code: int) -> Leaf | None:
    """What travels under that code; None if it is none of the table."""
    return _BY_CODE.get(code)


def dtype_code(obj: Any) -> Description:
    """The description of the dtype of a numpy array.

    Raises:
        Refusal: It has none.
    """
    try:
        return describe_dtype(obj.dtype)
    except ValueError as exc:
        raise Refusal(obj, str(exc)) from exc


def lower_numpy_scalar(obj: Any) -> list[Any]:
    """Its dtype and its bytes, and of a record whether it can be written, as only others can be hashed.

    Raises:
        Refusal: It is of a subclass, or its dtype has no description.
    """
    kind = type(obj)
    if kind in _FLEXIBLE_CODES and obj.dtype.names is None:
        # Not as an item of an array, which loses zeros at the end.
        return [_FLEXIBLE_CODES[kind], obj.encode("utf-8", "surrogatepass") if kind is np.str_ else bytes(obj)]
    code = dtype_code(obj)
    if build_dtype(code).type is not kind:
        raise Refusal(obj, f"it keeps no {kind.__module__}.{kind.__qualname__} like this one exactly")
    return [code, obj.tobytes(), obj.flags.writeable] if kind is np.void else [code, obj.tobytes()]


def rebuild_numpy_scalar(parts: list[Any]) -> Any:
    """The inverse of `lower_numpy_scalar`."""
    code, data, *is_writeable = parts
    if type(data) is not bytes:
        raise DecodeError("a numpy scalar without its bytes")
    if type(code) is str and code in _FLEXIBLE_BUILDERS and not is_writeable:
        return _FLEXIBLE_BUILDERS[code](data)
    dtype = build_dtype(code)
    flags = [bool] if dtype.names is not None else []
    if dtype.subdtype is not None or len(data) != dtype.itemsize or list(map(type, is_writeable)) != flags:
        raise DecodeError(f"not one {dtype!s:.80}")
    if not is_writeable:
        return np.frombuffer(data, dtype)[0]
    return np.frombuffer(bytearray(data) if is_writeable[0] else data, dtype)[0]


_FLEXIBLE_CODES: dict[type, str] = {np.str_: "U", np.bytes_: "S", np.void: "V"}
_FLEXIBLE_BUILDERS: dict[str, Callable[[bytes], Any]] = {
    "U": lambda data: np.str_(data.decode("utf-8", "surrogatepass")),
    "S": np.bytes_,
    "V": np.void,
}


def _lower_zone(obj: dt.datetime | dt.time) -> Any:
    """None, days, seconds and microseconds east of UTC, or the name of a zone."""
    zone = obj.tzinfo
    if zone is None:
        return None
    if type(zone) is ZoneInfo and _is_by_name(zone):
        return zone.key
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None)
        if _has_no_name(zone):
            return _timedelta_parts(offset)
    raise Refusal(obj, f"its time zone {zone!r:.60} is neither a fixed offset without a name nor ZoneInfo(name)")


def _has_no_name(zone: dt.timezone) -> bool:
    """Whether it was made of an offset alone; one made with the very name that it would have is another object."""
    return len(zone.__getinitargs__()) == 1  # type: ignore[attr-defined]


def _is_by_name(zone: ZoneInfo) -> bool:
    """Whether its name gives this very zone: not one from a file, past the cache, or from before it was cleared.

    Datetimes of two zones are compared in another way than those of one, also where both have the same name.
    """
    key: str | None = zone.key
    try:
        return key is not None and ZoneInfo(key) is zone
    except (KeyError, ValueError, TypeError, OSError):
        return False


def _rebuild_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    return ZoneInfo(zone) if type(zone) is str else dt.timezone(dt.timedelta(*zone))


def _timedelta_parts(delta: dt.timedelta) -> list[int]:
    return [delta.days, delta.seconds, delta.microseconds]


def _lower_datetime(obj: dt.datetime) -> list[Any]:
    clock = [obj.hour, obj.minute, obj.second, obj.microsecond]
    return [obj.year, obj.month, obj.day, *clock, _lower_zone(obj), obj.fold]


def _rebuild_datetime(parts: list[Any]) -> dt.datetime:
    year, month, day, hour, minute, second, microsecond, zone, fold = parts
    return dt.datetime(year, month, day, hour, minute, second, microsecond, _rebuild_zone(zone), fold=fold)


def _lower_time(obj: dt.time) -> list[Any]:
    return [obj.hour, obj.minute, obj.second, obj.microsecond, _lower_zone(obj), obj.fold]


def _rebuild_time(parts: list[Any]) -> dt.time:
    hour, minute, second, microsecond, zone, fold = parts
    return dt.time(hour, minute, second, microsecond, _rebuild_zone(zone), fold=fold)


def _rebuild_date(parts: list[Any]) -> dt.date:
    year, month, day = parts
    return dt.date(year, month, day)


def _rebuild_complex(parts: list[Any]) -> complex:
    real, imag = parts
    if type(real) is not float or type(imag) is not float:
        raise DecodeError("a complex number takes two floats")
    return complex(real, imag)


def _rebuild_uuid(parts: list[Any]) -> uuid.UUID:
    data, is_safe = parts
    return uuid.UUID(bytes=data, is_safe=uuid.SafeUUID(is_safe))


def _ints(parts: list[Any], count: int | None = None) -> list[int]:
    if any(type(part) is not int for part in parts) or len(parts) != (len(parts) if count is None else count):
        raise DecodeError(f"not {count or ''} ints")
    return parts


def _lower_range(obj: range) -> list[int]:
    parts = [obj.start, obj.stop, obj.step]
    if max(map(int.bit_length, parts)) > _MAX_BITS:
        raise Refusal(obj, f"one of its parts has more than {_MAX_BITS} bits")
    return parts


def _rebuild_range(parts: list[Any]) -> range:
    if max(map(int.bit_length, _ints(parts, 3))) > _MAX_BITS:
        raise DecodeError(f"a range with a part of more than {_MAX_BITS} bits")
    return range(*parts)


def _lower_fraction(obj: Fraction) -> list[int]:
    parts = [obj.numerator, obj.denominator]
    if max(map(int.bit_length, parts)) > _MAX_BITS:
        raise Refusal(obj, f"one of its parts has more than {_MAX_BITS} bits")
    return parts


def _rebuild_fraction(parts: list[Any]) -> Fraction:
    numerator, denominator = _ints(parts, 2)
    if max(numerator.bit_length(), denominator.bit_length()) > _MAX_BITS:
        raise DecodeError(f"a fraction with a part of more than {_MAX_BITS} bits")
    if denominator < 1 or math.gcd(numerator, denominator) != 1:
        raise DecodeError("a fraction that is not in lowest terms")
    return Fraction(numerator, denominator)


_PATH_TYPES: dict[str, type[pathlib.PurePath]] = {
    kind.__name__: kind
    for kind in (pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)
}


def _lower_path(obj: pathlib.PurePath) -> list[str]:
    text = str(obj)
    if str(type(obj)(text)) != text or type(obj)(text).parts != obj.parts:
        raise Refusal(obj, "its text does not give this path back")
    return [type(obj).__name__, text]


def _rebuild_path(parts: list[Any]) -> pathlib.PurePath:
    kind, text = parts
    if type(text) is not str:
        raise DecodeError("a path is text")
    return _PATH_TYPES[kind](text)


def _lower_numpy_dtype(obj: Any) -> list[Any]:
    if obj.str in _EMPTY_DTYPES and obj == np.dtype(obj.str) and not obj.metadata:
        return [obj.str]
    try:
        description = describe_dtype(obj)
    except ValueError as exc:
        raise Refusal(obj, str(exc)) from exc
    if build_dtype(description).num != obj.num:
        raise Refusal(obj, f"numpy dtype {obj!r:.200} would arrive as another of the same size")
    return [description]


def _rebuild_numpy_dtype(parts: list[Any]) -> Any:
    (description,) = parts
    is_empty = type(description) is str and description in _EMPTY_DTYPES
    return np.dtype(description) if is_empty else build_dtype(description)


_EMPTY_DTYPES = frozenset({"<U0", ">U0", "|S0", "|V0"})
"""Of text and bytes of any length: `numpy.dtype(str)`. Arrays have none of these."""


def _rebuild_torch_dtype(parts: list[Any]) -> Any:
    import torch

    (name,) = parts
    # Not getattr, which imports parts of torch for some names.
    dtype = vars(torch).get(name)
    if not isinstance(dtype, torch.dtype):
        raise DecodeError(f"unknown tensor dtype {name!r:.40}")
    return dtype


def _rebuild_torch_device(parts: list[Any]) -> Any:
    import torch

    kind, index = parts
    if type(kind) is not str or not kind.isalpha():
        raise DecodeError(f"unknown device {kind!r:.40}")
    return torch.device(kind) if index is None else torch.device(kind, *_ints([index]))


def _rebuild_torch_size(parts: list[Any]) -> Any:
    import torch

    return torch.Size(_ints(parts))


_LEAVES: dict[type, Leaf] = {
    bytearray: Leaf(BYTEARRAY, bytes, bytearray, is_bytes=True),
    Decimal: Leaf(_DECIMAL, lambda obj: str(obj).encode(), lambda data: Decimal(str(data, "ascii")), is_bytes=True),
    complex: Leaf(COMPLEX, lambda obj: [obj.real, obj.imag], _rebuild_complex),
    dt.datetime: Leaf(_DATETIME, _lower_datetime, _rebuild_datetime),
    dt.date: Leaf(_DATE, lambda obj: [obj.year, obj.month, obj.day], _rebuild_date),
    dt.time: Leaf(_TIME, _lower_time, _rebuild_time),
    dt.timedelta: Leaf(_TIMEDELTA, _timedelta_parts, lambda parts: dt.timedelta(*_ints(parts, 3))),
    uuid.UUID: Leaf(_UUID, lambda obj: [obj.bytes, obj.is_safe.value], _rebuild_uuid),
    range: Leaf(_RANGE, _lower_range, _rebuild_range),
    Fraction: Leaf(_FRACTION, _lower_fraction, _rebuild_fraction),
    **dict.fromkeys(_PATH_TYPES.values(), Leaf(_PATH, _lower_path, _rebuild_path)),
}
_NUMPY_DTYPE_LEAF = Leaf(_NUMPY_DTYPE, _lower_numpy_dtype, _rebuild_numpy_dtype)
_TORCH_LEAVES = {
    "dtype": Leaf(_TORCH_DTYPE, lambda obj: [str(obj).removeprefix("torch.")], _rebuild_torch_dtype),
    "device": Leaf(_TORCH_DEVICE, lambda obj: [obj.type, obj.index], _rebuild_torch_device),
    "Size": Leaf(_TORCH_SIZE, list, _rebuild_torch_size),
}
_BY_CODE = {leaf.code: leaf for leaf in (*_LEAVES.values(), _NUMPY_DTYPE_LEAF, *_TORCH_LEAVES.values())}
