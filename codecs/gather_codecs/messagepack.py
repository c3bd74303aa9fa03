"""MessagePack for plain data, arrays and tensors: every type comes back exactly, or encoding refuses it.

Types that MessagePack lacks travel as extension types, whose codes are part of the wire and never change:
containers hold nested MessagePack, arrays and tensors hold metadata and the number of the frame with their elements.
Decoding builds the types below and nothing else.
"""

import datetime as dt
import math
import re
import sys
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import numpy as np

from gather_codecs.tensors import build_tensor, dtype_name, dtype_of, is_plain, place, tensor_bytes
from gather_core.codec import Codec, DecodeOptions, Frames, Trust, own
from gather_core.errors import DecodeError, EncodeError

_MAX_DEPTH = 100
_TUPLE, _SET, _FROZENSET, _BIGINT, _COMPLEX, _BYTEARRAY = 1, 2, 3, 5, 6, 7
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = 10, 11, 12, 13, 14, 15
_NDARRAY, _NUMPY_SCALAR, _TENSOR = 20, 21, 22

_AS_IT_IS = frozenset({type(None), bool, float, str, bytes})
_ARRAY_DTYPE = re.compile(
    r"[<>|=]?(b1|[iu][1248]|f[248]|c(8|16))|[<>]?[mM]8(\[\d*(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)


class MessagePackCodec(Codec):
    """Data only: decoding cannot run code. Exact or refused, with the path of what it refuses.

    Takes None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, datetime, date,
    time, timedelta, Decimal, UUID, numeric numpy arrays and scalars, and dense torch tensors; no subclasses of them.
    References that share an object arrive as separate ones; cycles are refused.
    """

    name = "msgpack"
    trust = Trust.DATA

    def encode(self, obj: object) -> Frames:
        return _Encoder().encode(obj)

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        return _Decoder(frames, options).decode()


class _Encoder:
    """Lowers one object to what MessagePack has, and collects the frames of its arrays."""

    def __init__(self) -> None:
        self._frames: list[Any] = []

    def encode(self, obj: object) -> list[Any]:
        return [_pack(self._lower(obj, "$", 0)), *self._frames]

    def _lower(self, obj: Any, path: str, depth: int) -> Any:
        kind = type(obj)
        if kind in _AS_IT_IS:
            return obj
        if kind is int:
            return obj if -(1 << 63) <= obj < 1 << 64 else _ext(_BIGINT, _int_bytes(obj))
        if depth > _MAX_DEPTH:
            raise EncodeError(f"msgpack cannot encode {path}: nested more than {_MAX_DEPTH} deep, or in a cycle")
        if kind is list:
            return [self._lower(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(obj)]
        if kind is dict:
            return self._lower_dict(obj, path, depth)
        if kind in _ITEMS:
            items = [self._lower(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(obj)]
            return _ext(_ITEMS[kind], _pack(items))
        if kind in _LEAVES:
            code, lower = _LEAVES[kind]
            return _ext(code, _pack(lower(obj, path)))
        return self._lower_array(obj, path)

    def _lower_dict(self, obj: dict[Any, Any], path: str, depth: int) -> Any:
        lowered: list[tuple[Any, Any]] = []
        for key, value in obj.items():
            place_of = f"{path}.{key}" if type(key) is str else f"{path}[{key!r:.40}]"
            lowered.append((self._lower(key, f"key of {place_of}", depth + 1), self._lower(value, place_of, depth + 1)))
        return _Pairs(lowered)

    def _lower_array(self, obj: Any, path: str) -> Any:
        if type(obj) is np.ndarray:
            return _ext(
                _NDARRAY, _pack([self._dtype(obj, path), list(obj.shape), self._frame(np.ascontiguousarray(obj))])
            )
        if isinstance(obj, np.generic) and type(obj) is obj.dtype.type:
            return _ext(_NUMPY_SCALAR, _pack([self._dtype(obj, path), obj.tobytes()]))
        torch = sys.modules.get("torch")
        if torch is not None and type(obj) is torch.Tensor and is_plain(obj):
            meta = [dtype_name(obj.dtype), list(obj.shape), obj.requires_grad and obj.is_leaf, obj.device.type == "cpu"]
            return _ext(_TENSOR, _pack([*meta, self._frame(tensor_bytes(obj))]))
        kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
        raise EncodeError(f"msgpack cannot encode {path}: it keeps no {kind} exactly; convert it, or use pickle")

    @staticmethod
    def _dtype(obj: Any, path: str) -> str:
        code: str = obj.dtype.str
        if not _ARRAY_DTYPE.fullmatch(code) or np.dtype(code) != obj.dtype:
            raise EncodeError(f"msgpack cannot encode {path}: numpy dtype {obj.dtype} is not a plain number or time")
        return code

    def _frame(self, array: Any) -> int:
        self._frames.append(memoryview(array.reshape(-1).view(np.uint8)) if array.size else b"")
        return len(self._frames)


class _Pairs(dict[Any, Any]):
    """A dict to the packer, with keys that Python itself could not hash or would merge."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        super().__init__()
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def items(self) -> Any:
        return self._pairs


class _Decoder:
    """Rebuilds one object from its frames."""

    def __init__(self, frames: Sequence[memoryview], options: DecodeOptions) -> None:
        self._frames = frames
        self._options = options
        self._unused = set(range(1, len(frames)))
        self._depth = 0

    def decode(self) -> object:
        if not self._frames:
            raise DecodeError("no frames")
        try:
            obj = self._unpack(self._frames[0])
        except DecodeError:
            raise
        except Exception as exc:
            raise DecodeError(f"not what the msgpack codec writes: {type(exc).__name__}: {exc}") from exc
        if self._unused:
            raise DecodeError(f"{len(self._unused)} frames that nothing refers to")
        return obj

    def _unpack(self, data: Any) -> Any:
        """Unpacks one message, after a scan that allocates nothing has shown that its lengths are true."""
        self._depth += 1
        if self._depth > _MAX_DEPTH + 2:
            raise DecodeError(f"nested more than {_MAX_DEPTH} deep")
        scanner = msgpack.Unpacker(max_buffer_size=len(data) + 1, strict_map_key=False)
        scanner.feed(data)
        scanner.skip()
        if scanner.tell() != len(data):
            raise DecodeError(f"{len(data) - scanner.tell()} bytes behind the message")
        obj = msgpack.unpackb(
            data, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=self._ext, timestamp=0
        )
        self._depth -= 1
        return obj

    def _ext(self, code: int, data: bytes) -> Any:
        if code in _FROM_ITEMS:
            items = self._unpack(data)
            if type(items) is not list:
                raise DecodeError(f"extension {code} without a list")
            return _FROM_ITEMS[code](items)
        if code == _BIGINT:
            return int.from_bytes(data, "little", signed=True)
        if code in _FROM_LEAF:
            return _FROM_LEAF[code](self._unpack(data))
        if code in _FROM_ARRAY:
            return _FROM_ARRAY[code](self, *self._unpack(data))
        raise DecodeError(f"unknown extension type {code}")

    def _frame(self, index: object) -> memoryview:
        if type(index) is not int or index not in self._unused:
            raise DecodeError(f"frame {index!r} does not exist, or is used already")
        self._unused.remove(index)
        return own(self._frames[index])

    def _ndarray(self, code: object, shape: Any, index: object) -> "np.ndarray[Any, Any]":
        dtype = _checked_dtype(code)
        memory = self._frame(index)
        sizes_ok = type(shape) is list and len(shape) <= 64 and all(type(size) is int and size >= 0 for size in shape)
        if not sizes_ok or math.prod(shape) * dtype.itemsize != len(memory):
            raise DecodeError(f"{len(memory)} bytes are no {dtype} array of shape {shape!r:.80}")
        return np.frombuffer(memory, dtype).reshape(shape) if len(memory) else np.empty(shape, dtype)

    @staticmethod
    def _numpy_scalar(code: object, data: bytes) -> Any:
        dtype = _checked_dtype(code)
        if len(data) != dtype.itemsize:
            raise DecodeError(f"{len(data)} bytes are no {dtype}")
        return np.frombuffer(data, dtype)[0]

    def _rebuild_tensor(
        self, dtype: object, shape: Any, requires_grad: object, was_on_cpu: object, index: object
    ) -> Any:
        tensor = build_tensor(self._frame(index), dtype_of(dtype), tuple(shape))
        tensor = place(tensor, bool(was_on_cpu), self._options.tensor_device)
        return tensor.requires_grad_() if requires_grad else tensor


def _pack(lowered: Any) -> bytes:
    packed: bytes = msgpack.packb(lowered, unicode_errors="surrogatepass")
    return packed


def _ext(code: int, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(code, data)


def _int_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def _checked_dtype(code: object) -> "np.dtype[Any]":
    if type(code) is not str or not _ARRAY_DTYPE.fullmatch(code):
        raise DecodeError(f"numpy dtype {code!r:.40} is not a plain number or time")
    return np.dtype(code)


def _zone(tzinfo: dt.tzinfo | None, path: str) -> Any:
    """None, seconds east of UTC (fixed offset), or the name of a zone."""
    if tzinfo is None:
        return None
    if type(tzinfo) is ZoneInfo and tzinfo.key is not None:
        return tzinfo.key
    if type(tzinfo) is dt.timezone and tzinfo == dt.timezone(tzinfo.utcoffset(None)):
        offset = tzinfo.utcoffset(None)
        if tzinfo.tzname(None) == dt.timezone(offset).tzname(None):
            return [offset.days, offset.seconds, offset.microseconds]
    raise EncodeError(f"msgpack cannot encode {path}: time zone {tzinfo!r} is neither a fixed offset nor a ZoneInfo")


def _from_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    return ZoneInfo(zone) if type(zone) is str else dt.timezone(dt.timedelta(*zone))


def _lower_datetime(obj: dt.datetime, path: str) -> list[Any]:
    day = [obj.year, obj.month, obj.day]
    return [*day, obj.hour, obj.minute, obj.second, obj.microsecond, _zone(obj.tzinfo, path), obj.fold]


def _lower_time(obj: dt.time, path: str) -> list[Any]:
    return [obj.hour, obj.minute, obj.second, obj.microsecond, _zone(obj.tzinfo, path), obj.fold]


_ITEMS: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_LEAVES: dict[type, tuple[int, Callable[[Any, str], Any]]] = {
    complex: (_COMPLEX, lambda obj, path: [obj.real, obj.imag]),
    bytearray: (_BYTEARRAY, lambda obj, path: bytes(obj)),
    dt.datetime: (_DATETIME, _lower_datetime),
    dt.date: (_DATE, lambda obj, path: [obj.year, obj.month, obj.day]),
    dt.time: (_TIME, _lower_time),
    dt.timedelta: (_TIMEDELTA, lambda obj, path: [obj.days, obj.seconds, obj.microseconds]),
    Decimal: (_DECIMAL, lambda obj, path: str(obj)),
    uuid.UUID: (_UUID, lambda obj, path: obj.bytes),
}
_FROM_ITEMS: dict[int, Callable[[list[Any]], Any]] = {_TUPLE: tuple, _SET: set, _FROZENSET: frozenset}
_FROM_LEAF: dict[int, Callable[[Any], Any]] = {
    _COMPLEX: lambda parts: complex(*parts),
    _BYTEARRAY: bytearray,
    _DATETIME: lambda parts: dt.datetime(*parts[:7]).replace(tzinfo=_from_zone(parts[7]), fold=parts[8]),
    _DATE: lambda parts: dt.date(*parts),
    _TIME: lambda parts: dt.time(*parts[:4]).replace(tzinfo=_from_zone(parts[4]), fold=parts[5]),
    _TIMEDELTA: lambda parts: dt.timedelta(*parts),
    _DECIMAL: Decimal,
    _UUID: lambda data: uuid.UUID(bytes=data),
}
_FROM_ARRAY: dict[int, Callable[..., Any]] = {
    _NDARRAY: _Decoder._ndarray,
    _NUMPY_SCALAR: lambda decoder, *parts: decoder._numpy_scalar(*parts),
    _TENSOR: _Decoder._rebuild_tensor,
}
