"""The objects that are gathered, by name: each rank makes its own."""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from gather_bench.bench.workloads import WORKLOADS
from gather_bench.demo.payloads import DEMO_PAYLOADS
from gather_core.nearest import did_you_mean

Payload = Callable[[int], Any]
"""Makes the object of a rank."""

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"(\d{1,15})(KiB|MiB|GiB|)", re.ASCII)
_ITEM_NBYTES = 8


class PayloadError(ValueError):
    """No such payload; the message names the nearest known one."""


def payload(name: str) -> Payload:
    """Returns what makes a payload.

    Args:
        name: One of `WORKLOADS` and `DEMO_PAYLOADS`, `bytes:SIZE` or `array:SIZE` with a size such as 65536 or 64KiB,
            `skewed:SIZE,SIZE` for bytes of the first size on rank 0 and of the second on all others, or
            `module:function` for a function of the rank; modules are looked for in the current folder too.

    Raises:
        PayloadError: There is none of that name.
    """
    if name in _NAMED:
        return _NAMED[name]
    kind, colon, rest = name.partition(":")
    if colon and kind in _SIZED:
        return _SIZED[kind](_nbytes(name, rest))
    if colon and kind == _SKEWED:
        return _skewed(name, rest)
    if colon:
        return _imported(name, kind, rest)
    raise PayloadError(f"no payload is named {name!r}.{_hint(name)} Known: {', '.join(_known())}")


def _bytes_of(nbytes: int) -> Payload:
    def make(rank: int) -> bytes:
        import numpy as np

        return np.random.default_rng(rank).bytes(nbytes)

    return make


def _array_of(nbytes: int) -> Payload:
    def make(rank: int) -> Any:
        import numpy as np

        return np.arange(rank, rank + nbytes // _ITEM_NBYTES, dtype=np.int64)

    return make


_NAMED = WORKLOADS | DEMO_PAYLOADS
_SIZED: dict[str, Callable[[int], Payload]] = {"bytes": _bytes_of, "array": _array_of}
_SKEWED = "skewed"


def _skewed(name: str, sizes: str) -> Payload:
    """Bytes of one size on rank 0 and of another on all others."""
    first, comma, others = sizes.partition(",")
    if not comma:
        raise PayloadError(
            f"payload {name!r}: two sizes are needed, rank 0's and that of the others: skewed:64MiB,1KiB"
        )
    of_first, of_others = (_bytes_of(_nbytes(name, size)) for size in (first, others))
    return lambda rank: of_others(rank) if rank else of_first(rank)


def _known() -> list[str]:
    return [*_NAMED, *(f"{kind}:SIZE" for kind in _SIZED), f"{_SKEWED}:SIZE,SIZE", "module:function"]


def _hint(name: str) -> str:
    return did_you_mean(name, [*_NAMED, *_SIZED, _SKEWED])


def _nbytes(name: str, size: str) -> int:
    match = _SIZE.fullmatch(size)
    if match is None:
        raise PayloadError(f"payload {name!r}: {size!r} is not a size in bytes, such as 65536, 64KiB or 1MiB")
    return int(match[1]) * _UNITS[match[2]]


def _imported(name: str, module: str, function: str) -> Payload:
    """The user's own, which is looked for where `python -m` would find it."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        made: Any = import_module(module)
        for attribute in function.split("."):
            made = getattr(made, attribute)
    except (Exception, SystemExit) as exc:
        hint = _hint(module)
        raise PayloadError(f"payload {name!r} cannot be imported: {type(exc).__name__}: {exc}.{hint}") from exc
    if not callable(made):
        raise PayloadError(f"payload {name!r} is no function of the rank: it is {type(made).__name__}")
    found: Payload = made
    return found
