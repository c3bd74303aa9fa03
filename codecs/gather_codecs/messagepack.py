"""MessagePack for plain data, arrays and tensors: every type comes back exactly, or encoding refuses it.

Types that MessagePack lacks travel as extension types, whose codes are part of the wire and never change. Containers
hold nested MessagePack; arrays and tensors hold metadata and their elements, or the number of the frame with those.
Decoding builds the types below and nothing else.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import numpy as np

from gather_codecs.tensors import (
    array_bytes,
    arrives_with_grad,
    build_array,
    build_tensor,
    dtype_name,
    dtype_of,
    has_grad,
    is_plain_tensor,
    memory_order,
    place,
    plain_dtype,
    plain_dtype_code,
    tensor_bytes,
)
from gather_core.codec import Codec, DecodeOptions, Frames, Trust, own
from gather_core.errors import DecodeError, EncodeError, LimitError

_MAX_DEPTH = 100
_INLINE_BELOW_NBYTES = 1024
"""Elements of smaller arrays are cheaper inside the message than as a frame of their own."""
_SCAN_FROM_NBYTES = 512
"""Shorter messages cannot claim enough to be worth a scan."""
_PACKER_NBYTES = 4096

_TUPLE, _SET, _FROZENSET, _BIGINT, _COMPLEX, _BYTEARRAY = 1, 2, 3, 5, 6, 7
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = 10, 11, 12, 13, 14, 15
_NDARRAY, _NUMPY_SCALAR, _TENSOR = 20, 21, 22

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""Packed as they are."""
_CONTAINERS = (list, tuple, set, frozenset)


class MessagePackCodec(Codec):
    """Data only: decoding cannot run code. Exact or refused, with the path of what it refuses.

    Takes None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, datetime, date,
    time, timedelta, Decimal, UUID, numeric numpy arrays and scalars, and dense torch tensors; no subclasses of them.
    References that share an object arrive as separate ones; cycles are refused. Arrays and tensors arrive writable.
    Tensors arrive row-major, whatever their strides were (channels_last, transposed); detached unless they are leaves,
    whose `requires_grad` stays; and without hooks, which torch.save drops too. A leaf that has a `.grad` is refused.

    Every tuple, set or other type that MessagePack lacks is copied once per level that it is nested; decoding refuses
    to hold more than `Limits.payload_nbytes` in such copies at a time.
    """

    name = "msgpack"
    trust = Trust.DATA

    def encode(self, obj: object) -> Frames:
        lowering = _Lowering()
        try:
            return [_pack(lowering.lower(obj, 0)), *lowering.frames]
        except _Refusal as refusal:
            path = _path_to(refusal.culprit, obj, "$", 0) or "$"
            raise EncodeError(f"msgpack cannot encode {path}: {refusal.reason}") from refusal
        except Exception as exc:
            raise EncodeError(f"msgpack cannot encode this {type(obj).__name__}: {exc}") from exc

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if not frames:
            raise DecodeError("no frames")
        try:
            return _Rebuild(frames, options).decode()
        except (DecodeError, LimitError):
            raise
        except Exception as exc:
            raise DecodeError(f"not what the msgpack codec writes: {type(exc).__name__}: {exc}") from exc


class _Refusal(Exception):  # noqa: N818
    """What cannot be kept exactly, and why; where it is in the whole object is looked for afterwards."""

    def __init__(self, culprit: object, reason: str) -> None:
        self.culprit = culprit
        self.reason = reason
        super().__init__(reason)


class _Lowering:
    """Lowers one object to what MessagePack has, and collects the frames of its arrays."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def lower(self, obj: Any, depth: int) -> Any:
        kind = type(obj)
        if kind in _PLAIN:
            return obj
        if depth > _MAX_DEPTH:
            raise _Refusal(obj, f"nested more than {_MAX_DEPTH} deep, or in a cycle")
        if kind is dict:
            return self._lower_dict(obj, depth)
        if kind is list:
            return self._lower_items(obj, depth)
        if kind in _CODE_OF_CONTAINER:
            return msgpack.ExtType(_CODE_OF_CONTAINER[kind], _pack(self._lower_items(list(obj), depth)))
        if kind in _LEAVES:
            code, lower_leaf = _LEAVES[kind]
            return msgpack.ExtType(code, lower_leaf(obj))
        return self._lower_elements(obj, kind)

    def _lower_items(self, items: list[Any], depth: int) -> list[Any]:
        if _PLAIN.issuperset(map(type, items)):
            return items
        return [self.lower(item, depth + 1) for item in items]

    def _lower_dict(self, obj: dict[Any, Any], depth: int) -> dict[Any, Any]:
        has_plain_keys = _PLAIN.issuperset(map(type, obj))
        if has_plain_keys and _PLAIN.issuperset(map(type, obj.values())):
            return obj
        if has_plain_keys:
            return {key: self.lower(value, depth + 1) for key, value in obj.items()}
        lowered = {self.lower(key, depth + 1): self.lower(value, depth + 1) for key, value in obj.items()}
        if len(lowered) != len(obj):
            raise _Refusal(obj, "two of its keys have the same bytes, such as tuples with nan")
        return lowered

    def _lower_elements(self, obj: Any, kind: type) -> msgpack.ExtType:
        if kind is np.ndarray:
            meta: list[Any] = [_dtype_code(obj), list(obj.shape), memory_order(obj)]
            return msgpack.ExtType(_NDARRAY, _pack([*meta, self._elements(array_bytes(obj).data)]))
        if isinstance(obj, np.generic) and np.dtype(_dtype_code(obj)).type is kind:
            return msgpack.ExtType(_NUMPY_SCALAR, _pack([_dtype_code(obj), obj.tobytes()]))
        if is_plain_tensor(obj):
            if has_grad(obj):
                raise _Refusal(obj, "its .grad would be lost; send detached tensors")
            meta = [dtype_name(obj.dtype), list(obj.shape), arrives_with_grad(obj)]
            return msgpack.ExtType(_TENSOR, _pack([*meta, self._elements(tensor_bytes(obj).raw())]))
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise _Refusal(obj, f"it keeps no {name} like this one exactly; convert it, or use pickle")

    def _elements(self, flat: memoryview) -> bytes | int:
        if flat.nbytes < _INLINE_BELOW_NBYTES:
            return flat.tobytes()
        self.frames.append(flat)
        return len(self.frames)


def _pack(lowered: Any) -> bytes:
    # The packer's own 256 KiB of buffer would cost more than most messages.
    packer = msgpack.Packer(
        strict_types=True, unicode_errors="surrogatepass", default=_lower_int, buf_size=_PACKER_NBYTES
    )
    packed: bytes = packer.pack(lowered)
    return packed


def _lower_int(value: object) -> msgpack.ExtType:
    """What the packer itself refuses in a lowered object: ints beyond 64 bits."""
    if type(value) is not int:
        raise EncodeError(f"{type(value).__name__} was changed while it was being encoded")
    return msgpack.ExtType(_BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _path_to(culprit: object, obj: Any, path: str, depth: int) -> str | None:
    """The first path from obj to culprit, in the order of encoding."""
    if obj is culprit:
        return path
    if depth <= _MAX_DEPTH:
        for step, child in _children(obj):
            found = _path_to(culprit, child, path + step, depth + 1)
            if found is not None:
                return found
    return None


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    if type(obj) is dict:
        for key, value in obj.items():
            is_name = type(key) is str and key.isidentifier()
            text = f"{key!r:.40}" if type(key) in _PLAIN else f"<{type(key).__name__}>"
            yield f".{key}" if is_name else f"[{text}]", value
            yield f"[key of {text}]", key
    elif type(obj) in _CONTAINERS:
        for index, item in enumerate(obj):
            yield f"[{index}]", item


def _dtype_code(obj: Any) -> str:
    code = plain_dtype_code(obj.dtype)
    if code is None:
        raise _Refusal(obj, f"numpy dtype {obj.dtype} is not a plain number or time")
    return code


def _lower_zone(obj: dt.datetime | dt.time) -> Any:
    """None, days, seconds and microseconds east of UTC, or the name of a zone."""
    zone = obj.tzinfo
    if zone is None:
        return None
    if type(zone) is ZoneInfo and _is_by_name(zone):
        return zone.key
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None)
        if zone.tzname(None) == dt.timezone(offset).tzname(None):
            return _timedelta_parts(offset)
    raise _Refusal(obj, f"its time zone {zone!r:.60} is neither a fixed offset without a name nor ZoneInfo(name)")


def _is_by_name(zone: ZoneInfo) -> bool:
    """Whether its name gives this very zone: not one from a file, past the cache, or from before it was cleared.

    Datetimes of two zones are compared in another way than those of one, also where both have the same name.
    """
    key: str | None = zone.key
    try:
        return key is not None and ZoneInfo(key) is zone
    except (KeyError, ValueError, TypeError, OSError):
        return False


def _timedelta_parts(delta: dt.timedelta) -> list[int]:
    return [delta.days, delta.seconds, delta.microseconds]


def _lower_datetime(obj: dt.datetime) -> bytes:
    clock = [obj.hour, obj.minute, obj.second, obj.microsecond]
    return _pack([obj.year, obj.month, obj.day, *clock, _lower_zone(obj), obj.fold])


def _lower_time(obj: dt.time) -> bytes:
    return _pack([obj.hour, obj.minute, obj.second, obj.microsecond, _lower_zone(obj), obj.fold])


_CODE_OF_CONTAINER: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_LEAVES: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    complex: (_COMPLEX, lambda obj: _pack([obj.real, obj.imag])),
    bytearray: (_BYTEARRAY, bytes),
    dt.datetime: (_DATETIME, _lower_datetime),
    dt.date: (_DATE, lambda obj: _pack([obj.year, obj.month, obj.day])),
    dt.time: (_TIME, _lower_time),
    dt.timedelta: (_TIMEDELTA, lambda obj: _pack(_timedelta_parts(obj))),
    Decimal: (_DECIMAL, lambda obj: str(obj).encode()),
    uuid.UUID: (_UUID, lambda obj: _pack([obj.bytes, obj.is_safe.value])),
}


class _Rebuild:
    """Rebuilds one object from its frames."""

    def __init__(self, frames: Sequence[memoryview], options: DecodeOptions) -> None:
        self._frames = frames
        self._options = options
        self._unused = set(range(1, len(frames)))
        self._depth = 0
        self._held_nbytes = 0

    def decode(self) -> object:
        obj = self._unpack(self._frames[0])
        if self._unused:
            raise DecodeError(f"{len(self._unused)} frames that nothing refers to")
        return obj

    def _unpack(self, data: Any) -> Any:
        """Unpacks one message, after a scan that builds nothing has shown that its lengths are true."""
        self._depth += 1
        if self._depth > _MAX_DEPTH + 2:
            raise DecodeError(f"nested more than {_MAX_DEPTH} deep")
        if len(data) >= _SCAN_FROM_NBYTES:
            _scan(data)
        # timestamp=1: MessagePack's own Timestamp, which encode never writes, can become a float at most.
        obj = msgpack.unpackb(
            data, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=self._rebuild, timestamp=1
        )
        self._depth -= 1
        return obj

    def _rebuild(self, code: int, data: bytes) -> Any:
        """Rebuilds one extension; msgpack holds `data`, a copy, until this returns."""
        self._held_nbytes += len(data)
        if self._held_nbytes > self._options.limits.payload_nbytes:
            raise LimitError(f"copies of {self._held_nbytes} bytes of nested data are above {self._options.limits}")
        obj = self._rebuild_one(code, data)
        self._held_nbytes -= len(data)
        return obj

    def _rebuild_one(self, code: int, data: bytes) -> Any:
        if code in _FROM_DATA:
            return _FROM_DATA[code](data)
        if code in _FROM_PARTS:
            return _FROM_PARTS[code](self._parts(data))
        if code == _NDARRAY:
            return self._array(*self._parts(data))
        if code == _TENSOR:
            return self._tensor(*self._parts(data))
        raise DecodeError(f"unknown extension type {code}")

    def _parts(self, data: bytes) -> list[Any]:
        parts = self._unpack(data)
        if type(parts) is not list:
            raise DecodeError("an extension without a list of its parts")
        return parts

    def _memory(self, elements: object) -> Any:
        """Memory for the object to keep, from elements inside the message or from the frame that they number."""
        if type(elements) is bytes:
            return bytearray(elements)
        if type(elements) is not int or elements not in self._unused:
            raise DecodeError(f"frame {elements!r:.40} does not exist, or is used already")
        self._unused.remove(elements)
        return own(self._frames[elements])

    def _array(self, code: object, shape: object, order: Any, elements: object) -> Any:
        return build_array(self._memory(elements), plain_dtype(code), shape, order)

    def _tensor(self, dtype: object, shape: object, requires_grad: object, elements: object) -> Any:
        tensor = build_tensor(self._memory(elements), dtype_of(dtype), shape)
        tensor = place(tensor, self._options.tensor_device)
        return tensor.requires_grad_() if requires_grad else tensor


def _scan(data: Any) -> None:
    """Goes through one message without building anything; raises where its lengths are not true."""
    scanner = msgpack.Unpacker(max_buffer_size=len(data) + 1)
    scanner.feed(data)
    scanner.skip()


def _numpy_scalar(parts: list[Any]) -> Any:
    code, data = parts
    dtype = plain_dtype(code)
    if type(data) is not bytes or len(data) != dtype.itemsize:
        raise DecodeError(f"not the bytes of one {dtype}")
    return np.frombuffer(data, dtype)[0]


def _rebuild_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    return ZoneInfo(zone) if type(zone) is str else dt.timezone(dt.timedelta(*zone))


def _rebuild_datetime(parts: list[Any]) -> dt.datetime:
    year, month, day, hour, minute, second, microsecond, zone, fold = parts
    return dt.datetime(year, month, day, hour, minute, second, microsecond, _rebuild_zone(zone), fold=fold)


def _rebuild_time(parts: list[Any]) -> dt.time:
    hour, minute, second, microsecond, zone, fold = parts
    return dt.time(hour, minute, second, microsecond, _rebuild_zone(zone), fold=fold)


def _rebuild_complex(parts: list[Any]) -> complex:
    real, imag = parts
    if type(real) is not float or type(imag) is not float:
        raise DecodeError("a complex number takes two floats")
    return complex(real, imag)


def _rebuild_date(parts: list[Any]) -> dt.date:
    year, month, day = parts
    return dt.date(year, month, day)


def _rebuild_uuid(parts: list[Any]) -> uuid.UUID:
    data, is_safe = parts
    return uuid.UUID(bytes=data, is_safe=uuid.SafeUUID(is_safe))


_FROM_DATA: dict[int, Callable[[bytes], Any]] = {
    _BIGINT: lambda data: int.from_bytes(data, "little", signed=True),
    _BYTEARRAY: bytearray,
    _DECIMAL: lambda data: Decimal(data.decode("ascii")),
}
_FROM_PARTS: dict[int, Callable[[list[Any]], Any]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _COMPLEX: _rebuild_complex,
    _DATETIME: _rebuild_datetime,
    _DATE: _rebuild_date,
    _TIME: _rebuild_time,
    _TIMEDELTA: lambda parts: dt.timedelta(*parts),
    _UUID: _rebuild_uuid,
    _NUMPY_SCALAR: _numpy_scalar,
}
