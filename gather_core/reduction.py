"""Reducing the metrics of all ranks to one dictionary: the same on every rank, bit by bit, as all add in rank order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from numbers import Integral, Real
from typing import Any

from gather_core.errors import ReduceError, SettingsError, format_ranks
from gather_core.exactness import is_array, is_tensor


def _sum(values: Sequence[Any]) -> Any:
    return reduce(lambda total, value: total + value, map(_counted, values))


def _mean(values: Sequence[Any]) -> Any:
    return _sum([_as_floats(value) for value in values]) / len(values)


def _counted(value: Any) -> Any:
    """A truth value as the number that it is in a sum, and numpy's integers as ints, which do not overflow."""
    if isinstance(value, Integral):
        return int(value)
    if is_tensor(value):
        return value.long() if str(value.dtype) == "torch.bool" else value
    return value.astype("int64") if is_array(value) and value.dtype.kind == "b" else value


def _as_floats(value: Any) -> Any:
    """Arrays and tensors of integers as floats: their sum may need more bits than they have."""
    if is_tensor(value):
        return value if value.dtype.is_floating_point or value.dtype.is_complex else value.double()
    return value.astype("float64") if is_array(value) and value.dtype.kind in "biu" else value


def _max(values: Sequence[Any]) -> Any:
    return reduce(_elementwise("maximum", lambda a, b: b if b > a or b != b else a), values)


def _min(values: Sequence[Any]) -> Any:
    return reduce(_elementwise("minimum", lambda a, b: b if b < a or b != b else a), values)


def _elementwise(name: str, of_numbers: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Of two tensors, arrays or numbers, by the function of that name; NaN wherever one is."""

    def choose(a: Any, b: Any) -> Any:
        if is_tensor(a):
            import torch

            return getattr(torch, name)(a, b)
        if is_array(a):
            import numpy as np

            return getattr(np, name)(a, b)
        return a if a != a else of_numbers(a, b)

    return choose


_OPERATIONS: Mapping[str, Callable[[Sequence[Any]], Any]] = {"sum": _sum, "mean": _mean, "max": _max, "min": _min}


def check_metrics(metrics: object, op: object) -> dict[Any, Any]:
    """Returns this rank's metrics as a dict of its own.

    Raises:
        SettingsError: There is no such operation.
        TypeError: No mapping, or a value that is no real number, array or tensor.
    """
    if op not in _OPERATIONS:
        raise SettingsError(f"op must be one of {', '.join(_OPERATIONS)}, not {op!r}")
    if not isinstance(metrics, Mapping):
        raise TypeError(f"reduce() takes a mapping from names to numbers, arrays or tensors, not {metrics!r:.80}")
    for key, value in metrics.items():
        if not (isinstance(value, Real) or is_array(value) or is_tensor(value)):
            raise TypeError(f"the value of {key!r} is {value!r:.80}: no real number, array or tensor")
    return dict(metrics)


def combine(metrics_of: Sequence[Mapping[Any, Any]], op: str) -> dict[Any, Any]:
    """Reduces the metrics of all ranks, in the order of rank 0's keys.

    Raises:
        ReduceError: Keys, or what is behind one, differ between ranks; names ranks and keys.
    """
    failures: dict[int, list[str]] = {}
    for rank, text in _differences(metrics_of):
        failures.setdefault(rank, []).append(text)
    if failures:
        raise ReduceError({rank: ", ".join(texts) for rank, texts in failures.items()})
    function = _OPERATIONS[op]
    return {key: function([metrics[key] for metrics in metrics_of]) for key in metrics_of[0]}


def _differences(metrics_of: Sequence[Mapping[Any, Any]]) -> Iterator[tuple[int, str]]:
    """What each rank lacks that others have, and where its values are of another kind than those of the first rank."""
    for key in dict.fromkeys(key for metrics in metrics_of for key in metrics):
        having = [rank for rank, metrics in enumerate(metrics_of) if key in metrics]
        for rank in range(len(metrics_of)):
            if rank not in having:
                yield rank, f"{key!r} is missing, which {format_ranks(having)} handed in"
        kind = _kind(metrics_of[having[0]][key])
        for rank in having[1:]:
            if (other := _kind(metrics_of[rank][key])) != kind:
                yield rank, f"{key!r} is {other} and of rank {having[0]} {kind}"


def _kind(value: Any) -> str:
    """What must be equal for values to be added."""
    if is_array(value) or is_tensor(value):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    return "a number"
