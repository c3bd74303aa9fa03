"""Whether a gathered object is what was sent: of the same types and values, all the way down."""

import math
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

_ROOT = "$"


def difference(sent: object, got: object) -> str | None:
    """Says where and how the second object first differs from the first, or returns None."""
    return next(_differences(sent, got, _ROOT, set()), None)


def _differences(sent: Any, got: Any, path: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    if type(sent) is not type(got):
        yield f"{path} is of type {type(got).__name__} instead of {type(sent).__name__}"
    elif (id(sent), id(got)) in seen:
        return  # an object that holds itself
    elif isinstance(sent, Mapping):
        yield from _of_mappings(sent, got, path, seen | {(id(sent), id(got))})
    elif isinstance(sent, Sequence) and not isinstance(sent, str | bytes | bytearray | memoryview | range):
        yield from _of_sequences(sent, got, path, seen | {(id(sent), id(got))})
    elif (attributes := _attributes(sent)) is not None:
        yield from _of_mappings(attributes, _attributes(got) or {}, f"{path} as a dict", seen | {(id(sent), id(got))})
    elif not _is_equal(sent, got):
        yield f"{path} has another value"


def _of_mappings(
    sent: Mapping[Any, Any], got: Mapping[Any, Any], path: str, seen: set[tuple[int, int]]
) -> Iterator[str]:
    if sent.keys() != got.keys():
        yield f"{path} has other keys"
        return
    for key, value in sent.items():
        yield from _differences(value, got[key], f"{path}[{key!r}]", seen)


def _of_sequences(sent: Sequence[Any], got: Sequence[Any], path: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    if len(sent) != len(got):
        yield f"{path} has {len(got)} items instead of {len(sent)}"
        return
    for index, (one, other) in enumerate(zip(sent, got, strict=True)):
        yield from _differences(one, other, f"{path}[{index}]", seen)


def _attributes(obj: Any) -> dict[str, Any] | None:
    """Of an object that is compared by them: a dataclass, or what `==` says to differ from any copy."""
    if is_dataclass(obj):
        return {field.name: getattr(obj, field.name) for field in fields(obj)}
    kind: Any = type(obj)
    return vars(obj) if kind.__eq__ is object.__eq__ and hasattr(obj, "__dict__") else None


def _is_equal(sent: Any, got: Any) -> bool:
    numpy: Any = sys.modules.get("numpy")
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(sent, torch.Tensor):
        return sent.dtype == got.dtype and sent.shape == got.shape and _same_elements(sent, got)
    if numpy is not None and isinstance(sent, numpy.ndarray):
        return sent.dtype == got.dtype and sent.shape == got.shape and _same_items(sent, got)
    if isinstance(sent, float):
        return sent == got or (math.isnan(sent) and math.isnan(got))
    equal = sent == got
    if isinstance(equal, bool):
        return equal
    return pickle.dumps(sent) == pickle.dumps(got)  # it compares its elements, as data frames do


def _same_elements(sent: Any, got: Any) -> bool:
    """Of tensors, wherever they lie; NaN equals NaN where the bits are the same."""
    import torch

    one, other = (each.detach().to_dense().cpu().contiguous() for each in (sent, got))
    if torch.equal(one, other):
        return True
    return bool(torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (one, other))))


def _same_items(sent: Any, got: Any) -> bool:
    """Of arrays; NaN equals NaN where the bits are the same."""
    import numpy as np

    if sent.dtype.hasobject:
        return difference(sent.tolist(), got.tolist()) is None
    return bool(np.array_equal(sent, got)) or sent.tobytes() == got.tobytes()
