"""The receiving half of the msgpack codec: rebuilds one object from frames that may be hostile."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from gather_codecs.dtypes import build_dtype
from gather_codecs.message_depths import is_deeper
from gather_codecs.message_hashes import MAX_SAME_HASH, in_time
from gather_codecs.message_registry import RegisteredTypes
from gather_codecs.message_types import (
    BIGINT,
    BYTEARRAY,
    COUNTER,
    FROZENSET,
    MAX_DEPTH,
    NDARRAY,
    NUMPY_SCALAR,
    ORDERED_DICT,
    REGISTERED,
    SET,
    SLICE,
    TENSOR,
    TUPLE,
    leaf_with_code,
    rebuild_numpy_scalar,
)
from gather_codecs.message_unpacking import SCAN_DEPTH_FROM_NBYTES, too_deep, unpack
from gather_codecs.tensors import build_array, build_dense_tensor, dtype_of, place
from gather_core.codec import DecodeOptions, own
from gather_core.errors import DecodeError, LimitError


class Rebuild:
    """Rebuilds one object from its frames; a claim is believed only after a scan has shown that it is true."""

    def __init__(
        self,
        frames: Sequence[memoryview],
        options: DecodeOptions,
        types: RegisteredTypes,
        *,
        looks_at_keys: bool = False,
    ) -> None:
        self._frames = frames
        self._options = options
        self._types = types
        self._unused = set(range(1, len(frames)))
        self._num_messages = 0
        self._nesting = 0
        self._held_nbytes = 0
        self._max_depth = min(options.limits.depth, MAX_DEPTH)
        self._build_dict = _mapping if looks_at_keys else None

    def decode(self) -> object:
        """The object.

        Raises:
            LimitError: It is deeper or longer than the limits allow, or nested data would take too many copies.
            LookAgainError: There are dicts whose keys must be looked at before they are built.
            Exception: Whatever it is, the frames are not what the codec writes.
        """
        head = self._frames[0]
        obj = self._unpack(head)
        if self._unused:
            raise DecodeError(f"{len(self._unused)} frames that nothing refers to")
        if self._num_messages > 1 or len(head) < SCAN_DEPTH_FROM_NBYTES:
            _check_depth(obj, self._max_depth)
        return obj

    def _unpack(self, data: Any) -> Any:
        """Unpacks one message; unless it must be, without a function of ours per dict, which takes half as long again.

        So of a key that is there twice, the last value counts.
        """
        self._num_messages += 1
        self._nesting += 1
        if self._nesting > MAX_DEPTH + 2:
            raise DecodeError(f"nested more than {MAX_DEPTH} deep")
        obj = unpack(data, self._options.limits, self._rebuild, self._build_dict)
        self._nesting -= 1
        return obj

    def _rebuild(self, code: int, data: bytes) -> Any:
        """Rebuilds one extension; msgpack holds `data`, a copy, until this returns."""
        self._held_nbytes += len(data)
        max_nbytes = self._options.limits.payload_nbytes
        if self._held_nbytes > max_nbytes:
            raise LimitError(f"{self._held_nbytes} bytes of nested copies are above Limits.payload_nbytes={max_nbytes}")
        obj = self._rebuild_one(code, data)
        self._held_nbytes -= len(data)
        return obj

    def _rebuild_one(self, code: int, data: bytes) -> Any:
        if code == BYTEARRAY and len(data) > self._options.limits.string_nbytes:
            raise LimitError(f"{len(data)} bytes are above Limits.string_nbytes={self._options.limits.string_nbytes}")
        if code == BIGINT:
            return int.from_bytes(data, "little", signed=True)
        leaf = leaf_with_code(code)
        if leaf is not None:
            return leaf.rebuild(data if leaf.is_bytes else self._parts(data))
        if code in _FROM_PARTS:
            return _FROM_PARTS[code](self._parts(data))
        if code in _MAPPINGS:
            return _as_mapping(_MAPPINGS[code], self._unpack(data))
        if code == NDARRAY:
            return self._array(*self._parts(data))
        if code == TENSOR:
            return self._tensor(*self._parts(data))
        if code == REGISTERED:
            return self._registered(*self._parts(data))
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
        return build_array(self._memory(elements), build_dtype(code), shape, order)

    def _tensor(
        self, dtype: object, shape: object, requires_grad: object, elements: object, strides: object = None
    ) -> Any:
        tensor = build_dense_tensor(self._memory(elements), dtype_of(dtype), shape, strides)
        tensor = place(tensor, self._options.tensor_device)
        return tensor.requires_grad_() if requires_grad else tensor

    def _registered(self, tag: Any, data: object) -> object:
        entry = self._types.by_tag.get(tag)
        if entry is None:
            raise DecodeError(
                f"nothing is registered under {tag!r:.120} on this rank; call register_type on every rank before the "
                "Gatherer is made"
            )
        _check_depth(data, self._max_depth)
        return entry.rebuild(data)


def _check_depth(obj: object, max_depth: int) -> None:
    if is_deeper(obj, max_depth):
        raise too_deep(max_depth)


def _mapping(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    if len(pairs) <= MAX_SAME_HASH:
        return dict(pairs)
    mapping: dict[Any, Any] = {}
    for chunk in in_time([key for key, _ in pairs]):
        mapping.update(pairs[chunk])
    return mapping


def _set(kind: type[set[Any]] | type[frozenset[Any]], parts: list[Any]) -> Any:
    items: set[Any] = set()
    for chunk in in_time(parts):
        items.update(parts[chunk])
    if len(items) != len(parts):
        raise DecodeError(f"{len(parts) - len(items)} items of a set that it has already")
    return kind(items)


def _as_mapping(kind: type[dict[Any, Any]], mapping: object) -> dict[Any, Any]:
    if type(mapping) is not dict:
        raise DecodeError(f"a {kind.__name__} without a dict of its items")
    built = kind()
    # Not kind(mapping), which for a Counter would add up.
    dict.update(built, mapping) if kind is Counter else built.update(mapping)
    return built


def _slice(parts: list[Any]) -> slice:
    start, stop, step = parts
    return slice(start, stop, step)


_MAPPINGS: dict[int, type[dict[Any, Any]]] = {ORDERED_DICT: OrderedDict, COUNTER: Counter}
_FROM_PARTS: dict[int, Callable[[list[Any]], Any]] = {
    TUPLE: tuple,
    SET: lambda parts: _set(set, parts),
    FROZENSET: lambda parts: _set(frozenset, parts),
    SLICE: _slice,
    NUMPY_SCALAR: rebuild_numpy_scalar,
}
