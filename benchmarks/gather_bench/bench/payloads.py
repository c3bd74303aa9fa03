"""The objects that are gathered, by name: each rank makes its own."""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

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
        name: `metrics`, `dpr_step`, `bytes:SIZE` or `array:SIZE` with a size such as 65536 or 64KiB, or
            `module:function` for a function of the rank; modules are looked for in the current folder too.

    Raises:
        PayloadError: There is none of that name.
    """
    if name in _PLAIN:
        return _PLAIN[name]
    kind, colon, rest = name.partition(":")
    if colon and kind in _SIZED:
        return _SIZED[kind](_nbytes(name, rest))
    if colon:
        return _imported(name, kind, rest)
    raise PayloadError(f"no payload is named {name!r}.{_hint(name)} Known: {', '.join(_known())}")


def metrics(rank: int) -> dict[str, Any]:
    """What a training loop logs: 155 bytes as a pickle."""
    return {
        "step": 12_000 + rank,
        "epoch": 3,
        "loss": 0.25 * (rank + 1),
        "accuracy": 0.875,
        "learning_rate": 1e-4,
        "grad_norm": 1.5,
        "samples_per_s": 512.5,
        "split": "train",
    }


def dpr_step(rank: int) -> list[Any]:
    """What one step of Dense Passage Retrieval gathers: 16 questions, 32 passages of 768 float32, and their ids."""
    import torch

    random = torch.Generator().manual_seed(rank)
    questions, passages = (torch.randn(number, 768, generator=random) for number in (16, 32))
    return [questions, passages, list(range(16)), list(range(16, 48))]


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


_PLAIN: dict[str, Payload] = {"metrics": metrics, "dpr_step": dpr_step}
_SIZED: dict[str, Callable[[int], Payload]] = {"bytes": _bytes_of, "array": _array_of}


def _known() -> list[str]:
    return [*_PLAIN, *(f"{kind}:SIZE" for kind in _SIZED), "module:function"]


def _hint(name: str) -> str:
    return did_you_mean(name, [*_PLAIN, *_SIZED])


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
