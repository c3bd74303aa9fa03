"""MessagePack for plain data, arrays and tensors: every type comes back exactly, or encoding refuses it.

Types that MessagePack lacks travel as extension types, whose codes are part of the wire (`message_types.py`).
Containers hold nested MessagePack; arrays and tensors hold metadata and their elements, or the number of the frame with
those; objects of registered classes (`message_registry.py`) hold their tag and what they were taken apart into.
Decoding (`message_rebuild.py`) builds these types and nothing else.
"""

import gc
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from gather_codecs.message_paths import Refusal
from gather_codecs.message_rebuild import Rebuild
from gather_codecs.message_registry import RegisteredTypes, register_type, registered_types
from gather_codecs.message_types import (
    BIGINT,
    CODE_OF_MAPPING,
    CODE_OF_SET,
    MAX_DEPTH,
    MAX_SAME_HASH,
    NDARRAY,
    NUMPY_SCALAR,
    PLAIN,
    REGISTERED,
    SLICE,
    TENSOR,
    TUPLE,
    dtype_code,
    is_crowded,
    leaf_of,
)
from gather_codecs.tensors import (
    array_bytes,
    arrives_with_grad,
    dtype_name,
    has_grad,
    is_plain_tensor,
    memory_order,
    tensor_bytes,
)
from gather_core.codec import Codec, DecodeOptions, Frames, Trust
from gather_core.errors import DecodeError, EncodeError, LimitError

__all__ = ["MessagePackCodec", "register_type"]

_INLINE_BELOW_NBYTES = 1024
"""Elements of smaller arrays are cheaper inside the message than as a frame of their own."""
_PACKER_NBYTES = 4096
_TRY_WHOLE_DOWN_TO = 1
"""Below this depth, looking whether all of a container is plain would be done again too often."""
_PLAIN_OR_HOLDS_IT = PLAIN | {list, dict}


class MessagePackCodec(Codec):
    """Data only: decoding cannot run code. Exact or refused, with the path of what it refuses.

    Takes None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, OrderedDict, Counter, set,
    frozenset, datetime, date, time, timedelta, Decimal, Fraction, UUID, paths, slice, range, numeric numpy arrays,
    scalars and dtypes, dense torch tensors, dtypes, devices and sizes; no subclasses of them. Enums, namedtuples,
    dataclasses and any other class must be registered on every rank: `register_type`.
    References that share an object arrive as separate ones; cycles are refused. Arrays and tensors arrive writable.
    Tensors arrive row-major, whatever their strides were (channels_last, transposed); detached unless they are leaves,
    whose `requires_grad` stays; and without hooks, which torch.save drops too. A leaf that has a `.grad` is refused.

    Every tuple, set or other type that MessagePack lacks is copied once per level that it is nested; decoding refuses
    to hold more than `Limits.payload_nbytes` in such copies at a time.

    Args:
        sorted_sets: Whether equal sets give equal bytes on every rank. Takes longer; what arrives is the same.
    """

    name = "msgpack"
    trust = Trust.DATA

    def __init__(self, *, sorted_sets: bool = False) -> None:
        if type(sorted_sets) is not bool:
            raise ValueError(f"sorted_sets must be true or false, not {sorted_sets!r}")
        self._sorted_sets = sorted_sets

    @property
    def spec(self) -> str:
        return f"{self.name}:sorted_sets=true" if self._sorted_sets else self.name

    def fingerprint(self) -> str:
        """The name, and the registered classes: a rank that lacks one cannot read what holds it."""
        return self.name + registered_types().fingerprint()

    def encode(self, obj: object) -> Frames:
        whole = _pack_plain(obj)
        if whole is not None:
            return [whole]
        lowering = _Lowering(registered_types(), self._sorted_sets)
        try:
            return [_pack(lowering.lower(obj, 0)), *lowering.frames]
        except Refusal as refusal:
            raise EncodeError(f"msgpack cannot encode {refusal.path}: {refusal.reason}") from refusal
        except Exception as exc:
            raise EncodeError(f"msgpack cannot encode this {type(obj).__name__}: {exc}") from exc

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if not frames:
            raise DecodeError("no frames")
        try:
            return Rebuild(frames, options, registered_types()).decode()
        except (DecodeError, LimitError):
            raise
        except Exception as exc:
            raise DecodeError(f"not what the msgpack codec writes: {type(exc).__name__}: {exc}") from exc


class _Lowering:
    """Lowers one object to what MessagePack has, and collects the frames of its arrays."""

    def __init__(self, types: RegisteredTypes, sorted_sets: bool) -> None:
        self.frames: list[Any] = []
        self._types = types
        self._sorted_sets = sorted_sets

    def lower(self, obj: Any, depth: int) -> Any:
        """What MessagePack has for the object.

        Raises:
            Refusal: It, or something in it, cannot be kept.
        """
        kind = type(obj)
        if kind in PLAIN:
            return obj
        try:
            if depth > MAX_DEPTH:
                raise Refusal(obj, f"nested more than {MAX_DEPTH} deep, or in a cycle")
            if kind is dict:
                return self._lower_dict(obj, depth)
            if kind is list:
                return self._lower_list(obj, depth)
            if kind is tuple:
                return msgpack.ExtType(TUPLE, _pack(self._lower_list(list(obj), depth)))
            return self._lower_other(obj, kind, depth)
        except Refusal as refusal:
            refusal.leaves(obj)
            raise

    def _lower_list(self, items: list[Any], depth: int) -> list[Any]:
        if PLAIN.issuperset(map(type, items)):
            return items
        if 0 < depth <= _TRY_WHOLE_DOWN_TO and _pack_plain(items) is not None:
            return items
        return [self.lower(item, depth + 1) for item in items]

    def _lower_dict(self, obj: dict[Any, Any], depth: int) -> dict[Any, Any]:
        has_plain_keys = PLAIN.issuperset(map(type, obj))
        if len(obj) > MAX_SAME_HASH and is_crowded(obj):
            raise Refusal(obj, "too many of its keys share a hash")
        if has_plain_keys and PLAIN.issuperset(map(type, obj.values())):
            return obj
        if has_plain_keys:
            return {key: self.lower(value, depth + 1) for key, value in obj.items()}
        lowered = {self.lower(key, depth + 1): self.lower(value, depth + 1) for key, value in obj.items()}
        if len(lowered) != len(obj):
            raise Refusal(obj, "two of its keys have the same bytes, such as tuples with nan")
        return lowered

    def _lower_other(self, obj: Any, kind: type, depth: int) -> msgpack.ExtType:
        if kind is slice:
            return msgpack.ExtType(SLICE, _pack(self._lower_list([obj.start, obj.stop, obj.step], depth)))
        if kind in CODE_OF_SET:
            return msgpack.ExtType(CODE_OF_SET[kind], _pack(self._lower_set(obj, depth)))
        if kind in CODE_OF_MAPPING:
            if vars(obj):
                raise Refusal(obj, f"its attributes would be lost: {', '.join(vars(obj))}")
            return msgpack.ExtType(CODE_OF_MAPPING[kind], _pack(self._lower_dict(dict(obj), depth)))
        entry = self._types.by_class.get(kind)
        if entry is not None:
            return msgpack.ExtType(REGISTERED, _pack([entry.tag, self.lower(entry.lower(obj), depth + 1)]))
        leaf = leaf_of(kind)
        if leaf is not None:
            data = leaf.lower(obj)
            return msgpack.ExtType(leaf.code, data if leaf.is_bytes else _pack(data))
        return self._lower_elements(obj, kind)

    def _lower_set(self, items: set[Any] | frozenset[Any], depth: int) -> list[Any]:
        if is_crowded(items):
            raise Refusal(items, "too many of its items share a hash")
        lowered = self._lower_list(list(items), depth)
        return sorted(lowered, key=_pack) if self._sorted_sets else lowered

    def _lower_elements(self, obj: Any, kind: type) -> msgpack.ExtType:
        if kind is np.ndarray:
            meta: list[Any] = [dtype_code(obj), list(obj.shape), memory_order(obj)]
            return msgpack.ExtType(NDARRAY, _pack([*meta, self._elements(array_bytes(obj).data)]))
        if isinstance(obj, np.generic) and np.dtype(dtype_code(obj)).type is kind:
            return msgpack.ExtType(NUMPY_SCALAR, _pack([dtype_code(obj), obj.tobytes()]))
        if is_plain_tensor(obj):
            if has_grad(obj):
                raise Refusal(obj, "its .grad would be lost; send detached tensors")
            meta = [dtype_name(obj.dtype), list(obj.shape), arrives_with_grad(obj)]
            return msgpack.ExtType(TENSOR, _pack([*meta, self._elements(tensor_bytes(obj).raw())]))
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise Refusal(
            obj,
            f"it keeps no {name} like this one exactly; convert it, use register_type on its class, or pickle",
        )

    def _elements(self, flat: memoryview) -> bytes | int:
        if flat.nbytes < _INLINE_BELOW_NBYTES:
            return flat.tobytes()
        self.frames.append(flat)
        return len(self.frames)


def _pack_plain(obj: Any) -> bytes | None:
    """The message, if the object is plain data all the way down; None if it is not, or has odd ints or text."""
    try:
        packed: bytes = msgpack.Packer(strict_types=True, buf_size=_PACKER_NBYTES).pack(obj)
    except Exception:  # what it is, lowering will find out
        return None
    return packed if _holds_only_plain(obj) else None


def _holds_only_plain(obj: Any) -> bool:
    """Of what the packer takes: no bytearray, memoryview, ExtType or Timestamp, which would arrive as something else.

    Level by level, as asking each container for its own takes twice as long; having been packed, there are not more
    levels than the packer goes down.
    """
    level: Sequence[Any] = (obj,)
    for _ in range(MAX_DEPTH + 2):
        if _are_numbers(level):
            return True
        if not _PLAIN_OR_HOLDS_IT.issuperset(map(type, level)):
            return False
        level = gc.get_referents(*level)
        if not level:
            return True
    return False


def _are_numbers(level: Sequence[Any]) -> bool:
    """Whether all of a level are numbers: of what the packer takes, nothing else adds up to one.

    Takes a fifth of the time of looking at their types.
    """
    if type(level[0]) is not int and type(level[0]) is not float:
        return False  # sooner than by an exception
    try:
        sum(level)
    except TypeError:
        return False
    return True


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
    return msgpack.ExtType(BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
