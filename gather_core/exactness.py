"""Whether two objects are the same in everything that a codec has to keep, and where they differ."""

import reprlib
import struct
import sys
from collections import ChainMap
from collections.abc import Iterator
from decimal import Decimal
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any

_NO_PARTS = (type(None), bool, int, str, bytes, float, complex)
_PATHS = (PosixPath, PurePosixPath, PureWindowsPath, WindowsPath)
_PICKLE_PROTOCOL = 4

_Seen = ChainMap[tuple[int, int], tuple[object, object]]
"""Pairs that are the same, or are being compared further up, by id; holding them keeps their ids from others."""


def difference(actual: object, expected: object) -> str | None:
    """Where and how the objects differ, such as "$.a[1]: tuple became list"; None if they are the same.

    Same types all the way down; floats, arrays and tensors bit for bit; the order of dicts. Of tensors,
    `requires_grad` counts on leaves only, as others arrive detached. Sets are compared item by item, whatever their
    order. An object that says itself what a copy of it needs (`__reduce__`, `__getstate__`), or has slots, is compared
    by that, and one with neither that nor attributes by `==` and by its repr.
    """
    return _difference(actual, expected, "$", ChainMap())


def parts(obj: object) -> Iterator[object]:
    """The object and everything inside it, each once: items, keys, attributes."""
    seen: dict[int, object] = {}
    stack = [obj]
    while stack:
        part = stack.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            yield part
            stack.extend(_children(part))


def is_tensor(obj: object) -> bool:
    """Whether this is a torch tensor; does not import torch."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(obj, torch.Tensor)


def is_array(obj: object) -> bool:
    """Whether this is a numpy array; does not import numpy."""
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.ndarray)


def scramble(obj: object) -> None:
    """Changes whatever can be changed inside an object: what another one shares with it is then no longer the same."""
    for part in list(parts(obj)):
        if isinstance(part, list | dict | set):
            part.clear()
        elif isinstance(part, bytearray):
            part[:] = bytes(byte ^ 0xFF for byte in part)
        elif isinstance(part, memoryview) and not part.readonly:
            part.cast("B")[:] = bytes(byte ^ 0xFF for byte in part.cast("B"))
        elif is_array(part):
            _scramble_array(part)
        elif is_tensor(part):
            _scramble_tensor(part)


def _scramble_array(array: Any) -> None:
    dense = array.transpose(_in_memory_order(array.strides))
    if array.flags.writeable and not array.dtype.hasobject and dense.flags.c_contiguous:
        flat = dense.reshape(-1).view("u1")
        flat ^= 0xFF


def _scramble_tensor(tensor: Any) -> None:
    torch: Any = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_meta:
        return
    dense = tensor.detach().permute(_in_memory_order(tensor.stride()))
    if dense.is_contiguous():
        dense.reshape(-1).view(torch.uint8).bitwise_not_()


def _in_memory_order(strides: tuple[int, ...]) -> list[int]:
    """The dimensions, outermost first."""
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])


def _children(part: object) -> list[object]:
    if isinstance(part, (*_NO_PARTS, type)):
        return []
    children: list[object] = list(vars(part).values()) if hasattr(part, "__dict__") else []
    if isinstance(part, dict):
        children += [*part.keys(), *part.values()]
    elif isinstance(part, list | tuple | set | frozenset):
        children += part
    return children


def _difference(a: Any, b: Any, path: str, seen: _Seen) -> str | None:
    if type(a) is not type(b):
        return f"{path}: {type(b).__name__} became {type(a).__name__}"
    if a is b or (id(a), id(b)) in seen:
        return None
    if isinstance(a, _NO_PARTS) and type(a) in _NO_PARTS:
        return None if _bits(a) == _bits(b) else _became(a, b, path)
    seen[id(a), id(b)] = a, b
    if is_tensor(a):
        return _tensor_difference(a, b, path) or _attributes(a, b, path, seen)
    if is_array(a):
        return _array_difference(a, b, path, seen) or _attributes(a, b, path, seen)
    if isinstance(a, dict):
        return _dict_difference(a, b, path, seen) or _attributes(a, b, path, seen)
    if isinstance(a, list | tuple):
        return _items(a, b, path, seen) or _attributes(a, b, path, seen)
    if isinstance(a, set | frozenset):
        return _set_difference(a, b, path, seen) or _attributes(a, b, path, seen)
    return _value_difference(a, b, path, seen)


def _became(a: object, b: object, path: str) -> str:
    return f"{path}: {reprlib.repr(b)} became {reprlib.repr(a)}"


def _bits(value: Any) -> object:
    if isinstance(value, float):
        return struct.pack("<d", value)
    return struct.pack("<dd", value.real, value.imag) if isinstance(value, complex) else value


def _items(a: Any, b: Any, path: str, seen: _Seen, what: str = "") -> str | None:
    if len(a) != len(b):
        return f"{path}: {len(b)} items became {len(a)}"
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if text := _difference(x, y, f"{path}{what}[{index}]", seen):
            return text
    return None


def _dict_difference(a: Any, b: Any, path: str, seen: _Seen) -> str | None:
    where = f"{path}.default_factory"  # of a defaultdict
    return _difference(getattr(a, "default_factory", None), getattr(b, "default_factory", None), where, seen) or _items(
        list(a.items()), list(b.items()), path, seen, " (items in order)"
    )


def _set_difference(a: Any, b: Any, path: str, seen: _Seen) -> str | None:
    """Not by `==`: 1 equals True, and nan nothing. Equal hashes come first, as all pairs of a large set are many."""
    if len(a) != len(b):
        return f"{path}: {len(b)} items became {len(a)}"
    by_hash: dict[int, list[object]] = {}
    for x in a:
        by_hash.setdefault(hash(x), []).append(x)
    unmatched = [item for item in b if not _take_same(by_hash.get(hash(item), []), item, path, seen)]
    left = [x for candidates in by_hash.values() for x in candidates]
    missing = (item for item in unmatched if not _take_same(left, item, path, seen))
    return next((f"{path}: the item {reprlib.repr(item)} is missing" for item in missing), None)


def _take_same(candidates: list[object], item: object, path: str, seen: _Seen) -> bool:
    """Removes the first candidate that is the same as the item; tells whether there was one."""
    for index, candidate in enumerate(candidates):
        trial = seen.new_child()
        if _difference(candidate, item, path, trial) is None:
            seen.update(trial.maps[0])
            del candidates[index]
            return True
    return False


def _attributes(a: Any, b: Any, path: str, seen: _Seen) -> str | None:
    if not hasattr(a, "__dict__"):
        return None
    return _difference(vars(a), vars(b), f"{path}.__dict__", seen)


def _value_difference(a: Any, b: Any, path: str, seen: _Seen) -> str | None:
    if isinstance(a, memoryview):
        was, now = ((view.format, view.shape, view.readonly, view.tobytes()) for view in (b, a))
        return None if was == now else f"{path}: a memoryview {was!r:.60} became {now!r:.60}"
    if isinstance(a, type):
        return _became(a, b, path)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(a, numpy.generic):
        return None if (a.dtype, a.tobytes()) == (b.dtype, b.tobytes()) else _became(a, b, path)
    if type(a) in _PATHS:  # since Python 3.13 pickled as the segments it was made of, which are not a part of its value
        return None if str(a) == str(b) else _became(a, b, path)
    if _says_itself(a) and (state := _state(a)) is not None:
        return _difference(state, _state(b), f"{path} as pickled", seen)
    if hasattr(a, "__dict__") and (vars(a) or vars(b)):
        return _attributes(a, b, path, seen)
    kind: Any = type(a)
    has_eq, has_repr = kind.__eq__ is not object.__eq__, kind.__repr__ is not object.__repr__
    if not has_eq and not has_repr and not hasattr(a, "__dict__"):
        return f"{path}: {type(a).__name__} cannot be compared; override `same`"
    is_equal = not has_eq or isinstance(a, Decimal) or bool(a == b)  # Decimals: nan equals nothing, sNaN raises
    return None if is_equal and (not has_repr or repr(a) == repr(b)) else _became(a, b, path)


def _says_itself(obj: object) -> bool:
    """Whether attributes may not be what a copy is made of."""
    kind: Any = type(obj)
    verbs = ("__reduce_ex__", "__reduce__", "__getstate__")
    return not hasattr(obj, "__dict__") or any(getattr(kind, verb) is not getattr(object, verb) for verb in verbs)


def _state(obj: object) -> list[object] | None:
    """What a copy of the object is made of; None where it cannot be copied, or is known by its name."""
    try:
        reduced: Any = obj.__reduce_ex__(_PICKLE_PROTOCOL)
    except Exception:
        return None
    if isinstance(reduced, str):
        return None
    make, arguments, state, items, pairs = (list(reduced) + [None] * 3)[:5]
    return [
        make,
        arguments,
        None if isinstance(state, dict) and not state else state,
        list(items or ()),
        list(pairs or ()),
    ]


def _array_difference(a: Any, b: Any, path: str, seen: _Seen) -> str | None:
    was, now = ((array.dtype, array.shape) for array in (b, a))
    if was != now:
        return f"{path}: an array of {was} became {now}"
    if a.dtype.hasobject:
        return _items(a.ravel().tolist(), b.ravel().tolist(), path, seen)
    return None if _array_bytes(a) == _array_bytes(b) else f"{path}: elements of the array changed"


def _array_bytes(array: Any) -> bytes:
    """Bytes of the elements with what lies between the fields of records, which numpy leaves undefined in a copy."""
    elements: bytes = (array.view(f"V{array.itemsize}") if array.dtype.names else array).tobytes()
    return elements


def _tensor_difference(a: Any, b: Any, path: str) -> str | None:
    was, now = ((t.dtype, tuple(t.shape), t.layout, t.requires_grad and t.is_leaf) for t in (b, a))
    if was != now:
        return f"{path}: a tensor of (dtype, shape, layout, requires_grad) {was} became {now}"
    was_scaled, now_scaled = _quantization(b), _quantization(a)
    if was_scaled != now_scaled:
        return f"{path}: a tensor quantized by {was_scaled} became one by {now_scaled}"
    torch: Any = sys.modules["torch"]
    return None if torch.equal(_elements(a), _elements(b)) else f"{path}: elements of the tensor changed"


def _quantization(tensor: Any) -> tuple[Any, ...]:
    """The scheme, and its numbers, by which integers stand for the elements; nothing where they do not."""
    torch: Any = sys.modules["torch"]
    if not tensor.is_quantized:
        return ()
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return tensor.qscheme(), tensor.q_scale(), tensor.q_zero_point()
    scales, zero_points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return tensor.qscheme(), tensor.q_per_channel_axis(), scales.tolist(), zero_points.tolist()


def _elements(tensor: Any) -> Any:
    torch: Any = sys.modules["torch"]
    dense = tensor.detach().cpu()
    dense = dense if dense.layout is torch.strided else dense.to_dense()
    if dense.is_quantized:
        dense = dense.int_repr()  # else the comparison ends the process
    dense = dense.resolve_conj().resolve_neg().contiguous()
    # Not by view or clone: one element may have a stride of 2, and complex32 takes no clone without a warning.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8) if dense.numel() else torch.empty(0)
