"""The sending half of the msgpack codec: lowers one object to MessagePack and the frames of its arrays.

The packer goes through lists and dicts by itself, and asks `Lowering` for what MessagePack lacks.
"""

import gc
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from gather_codecs.message_depths import is_deeper
from gather_codecs.message_hashes import HashWatch, LookAgainError, is_crowded
from gather_codecs.message_paths import Refusal
from gather_codecs.message_registry import RegisteredTypes
from gather_codecs.message_types import (
    BIGINT,
    CODE_OF_MAPPING,
    CODE_OF_SET,
    MAX_DEPTH,
    NDARRAY,
    NUMPY_SCALAR,
    PLAIN,
    REGISTERED,
    SLICE,
    TENSOR,
    TUPLE,
    dtype_code,
    leaf_of,
    lower_numpy_scalar,
)
from gather_codecs.tensors import (
    array_bytes,
    arrives_with_grad,
    dense_layout,
    dtype_name,
    has_grad,
    is_plain_tensor,
    memory_order,
    tensor_bytes,
)
from gather_core.errors import summarize

_INLINE_BELOW_NBYTES = 1024
"""Elements of smaller arrays are cheaper inside the message than as a frame of their own."""
_PACKER_NBYTES = 4096
"""The packer's own 256 KiB of buffer would cost more than most messages."""
_PLAIN_OR_HOLDS_IT = PLAIN | {list, dict}
_HOLDS_OTHERS = (list, dict)
_MISTAKEN: frozenset[type] = frozenset({bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp})
"""What the packer takes for something else, instead of asking."""


def pack_plain(obj: object) -> bytes | None:
    """The message of plain data; None if there is something else, or odd ints or text, or it is too deep."""
    if type(obj) not in _PLAIN_OR_HOLDS_IT or (type(obj) is list and obj and type(obj[0]) not in _PLAIN_OR_HOLDS_IT):
        return None  # sooner than by trying
    try:
        packed: bytes = msgpack.Packer(strict_types=True, buf_size=_PACKER_NBYTES).pack(obj)
    except Exception:  # what it is, lowering will find out
        return None
    return packed if _is_taken_right(obj, is_plain=True) else None


class Lowering:
    """Lowers one object, once.

    Args:
        types: The registered classes.
        sorted_sets: Whether equal sets give equal bytes.
        is_careful: Whether to take whatever comes, and slowly: looking at each container before it is packed.
    """

    def __init__(self, types: RegisteredTypes, *, sorted_sets: bool, is_careful: bool = False) -> None:
        self.frames: list[Any] = []
        self._types = types
        self._sorted_sets = sorted_sets
        self._is_careful = is_careful
        self._unicode_errors = "surrogatepass" if is_careful else None  # which makes all text slower
        self._see = _ignore if is_careful else HashWatch().see
        self._depth = 0
        self._num_asked = 0
        self._meta_packer: msgpack.Packer | None = None

    def lower(self, obj: object) -> bytes:
        """The message of the object; `frames` are what it refers to.

        Raises:
            Refusal: It, or something in it, cannot be kept.
            LookAgainError: It must be lowered by one that is careful.
        """
        message = self._message(obj, obj, obj)
        if self._num_asked and is_deeper(obj, MAX_DEPTH):
            raise _too_deep(obj)
        return message

    def _message(self, obj: Any, origin: object, root: object) -> bytes:
        """One message.

        Args:
            obj: What the message holds.
            origin: The object of the user's that it stands for.
            root: Where to look for what is refused in it.
        """
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH + 2:
                raise _too_deep(origin)
            packed = self._pack(self._taken_right(obj, 0)) if self._is_careful else self._pack_at_once(obj)
        except Refusal as refusal:
            refusal.is_in(root, origin)
            raise
        self._depth -= 1
        return packed

    def _pack_at_once(self, obj: Any) -> bytes:
        """The message, unless something in it is mistaken, or too deep, or text with lone surrogates."""
        num_asked = self._num_asked
        try:
            packed = self._pack(obj)
        except (Refusal, LookAgainError):
            raise
        except Exception as exc:
            raise LookAgainError from exc
        is_flat = type(obj) is list and PLAIN.issuperset(map(type, obj))
        if not is_flat and not _is_taken_right(obj, is_plain=self._num_asked == num_asked):
            raise LookAgainError
        return packed

    def _pack(self, obj: Any) -> bytes:
        packer = msgpack.Packer(
            strict_types=True,
            unicode_errors=self._unicode_errors,
            default=self._lower_other,
            buf_size=_PACKER_NBYTES,
        )
        packed: bytes = packer.pack(obj)
        return packed

    def _taken_right(self, obj: Any, depth: int) -> Any:
        """The object, with what the packer mistakes lowered already."""
        kind = type(obj)
        if kind in _MISTAKEN:
            return self._lower_other(obj)
        if kind not in _HOLDS_OTHERS:
            return obj
        if depth > MAX_DEPTH:
            raise _too_deep(obj)
        if kind is list:
            return [self._taken_right(item, depth + 1) for item in obj]
        if is_crowded(obj):
            raise Refusal(obj, "too many of its keys share a hash")
        return {self._taken_right(key, depth): self._taken_right(value, depth + 1) for key, value in obj.items()}

    def _lower_other(self, obj: Any) -> msgpack.ExtType:
        """What the packer asks for: what it does not know, and ints beyond 64 bits."""
        self._num_asked += 1
        try:
            return self._lower_by_type(obj, type(obj))
        except (Refusal, LookAgainError):
            raise
        except Exception as exc:
            if self._is_careful:
                raise Refusal(obj, summarize(exc)) from exc
            raise LookAgainError from exc

    def _lower_by_type(self, obj: Any, kind: type) -> msgpack.ExtType:
        if kind is tuple:
            message = self._message(list(obj), obj, obj)
            self._see(obj)  # not before: hashing tuples in tuples in tuples ends the process
            return msgpack.ExtType(TUPLE, message)
        if kind is np.ndarray:
            return self._lower_array(obj)
        if kind in CODE_OF_SET:
            message = self._lower_set(obj)
            self._see(obj)
            return msgpack.ExtType(CODE_OF_SET[kind], message)
        if kind in CODE_OF_MAPPING:
            if vars(obj):
                raise Refusal(obj, f"its attributes would be lost: {', '.join(vars(obj))}")
            return msgpack.ExtType(CODE_OF_MAPPING[kind], self._message(dict(obj), obj, obj))
        if kind is slice:
            return msgpack.ExtType(SLICE, self._message([obj.start, obj.stop, obj.step], obj, obj))
        return self._lower_one_of_a_table(obj, kind)

    def _lower_one_of_a_table(self, obj: Any, kind: type) -> msgpack.ExtType:
        entry = self._types.by_class.get(kind)
        if entry is not None:
            data = entry.lower(obj)
            message = self._message([entry.tag, data], obj, data)
            self._see(obj)
            if is_deeper(data, MAX_DEPTH):
                raise _too_deep(obj)
            return msgpack.ExtType(REGISTERED, message)
        if kind is int:
            self._see(obj)
            return msgpack.ExtType(BIGINT, obj.to_bytes(obj.bit_length() // 8 + 1, "little", signed=True))
        leaf = leaf_of(kind)
        if leaf is not None:
            self._see(obj)
            data = leaf.lower(obj)
            return msgpack.ExtType(leaf.code, data if leaf.is_bytes else self._pack(data))
        return self._lower_elements(obj, kind)

    def _lower_set(self, items: set[Any] | frozenset[Any]) -> bytes:
        if is_crowded(items):
            raise Refusal(items, "too many of its items share a hash")
        if not self._sorted_sets:
            return self._message(list(items), items, items)
        messages = sorted(self._message([item], items, items)[1:] for item in items)
        header: bytes = msgpack.Packer().pack_array_header(len(messages))
        return header + b"".join(messages)

    def _lower_array(self, obj: Any) -> msgpack.ExtType:
        meta: list[Any] = [dtype_code(obj), list(obj.shape), memory_order(obj)]
        return msgpack.ExtType(NDARRAY, self._pack_meta([*meta, self._elements(array_bytes(obj).data)]))

    def _pack_meta(self, meta: list[Any]) -> bytes:
        """The message of what is surely plain, by a packer that is made once."""
        if self._meta_packer is None:
            self._meta_packer = msgpack.Packer(
                strict_types=True, unicode_errors=self._unicode_errors, buf_size=_PACKER_NBYTES
            )
        packed: bytes = self._meta_packer.pack(meta)
        return packed

    def _lower_elements(self, obj: Any, kind: type) -> msgpack.ExtType:
        if isinstance(obj, np.generic):
            self._see(obj)
            return msgpack.ExtType(NUMPY_SCALAR, self._pack(lower_numpy_scalar(obj)))
        if is_plain_tensor(obj):
            if has_grad(obj):
                raise Refusal(obj, "its .grad would be lost; send detached tensors")
            elements, strides = dense_layout(obj)
            meta = [dtype_name(obj.dtype), list(obj.shape), arrives_with_grad(obj)]
            layout = [] if strides is None else [list(strides)]
            flat = self._elements(tensor_bytes(elements).raw())
            return msgpack.ExtType(TENSOR, self._pack_meta([*meta, flat, *layout]))
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


def _is_taken_right(obj: Any, *, is_plain: bool) -> bool:
    """Whether lists and dicts, as deep as the packer goes by itself, hold nothing that it mistakes.

    Level by level, as asking each container for its own takes twice as long. `is_plain`: it has asked for nothing.
    """
    level: Sequence[Any] = (obj,)
    for _ in range(MAX_DEPTH + 2):
        if not level or (is_plain and _are_numbers(level)):
            return True
        kinds = set(map(type, level))
        if not kinds <= _PLAIN_OR_HOLDS_IT:
            if not kinds.isdisjoint(_MISTAKEN):
                return False
            level = [item for item in level if type(item) in _HOLDS_OTHERS]
        elif kinds.isdisjoint(_HOLDS_OTHERS):
            return True
        level = gc.get_referents(*level)
    return False


def _ignore(obj: object) -> None:
    pass


def _too_deep(obj: object) -> Refusal:
    return Refusal(obj, f"nested more than {MAX_DEPTH} deep, or in a cycle")


def _are_numbers(level: Sequence[Any]) -> bool:
    """Whether all of a level are numbers: of what the packer knows, nothing else adds up to one.

    Takes a fifth of the time of looking at their types.
    """
    if type(level[0]) is not int and type(level[0]) is not float:
        return False  # sooner than by an exception
    try:
        sum(level)
    except TypeError:
        return False
    return True
