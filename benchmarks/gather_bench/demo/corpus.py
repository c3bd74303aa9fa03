"""The data: questions and passages from the Python standard library that runs this."""

import importlib
import inspect
import io
import pkgutil
import re
import sys
import types
import warnings
import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

_NOT_IMPORTED = frozenset(
    # These open windows or browsers, print, are huge, or need another platform.
    {"__main__", "antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"}
)
_SIGNATURE_LINE = re.compile(r"^\S*\(.*?\)\s*(->.*)?(\n|$)")
_MAX_PASSAGE = 400
_MIN_PASSAGE = 20
NUM_HELD_OUT = 1000


@dataclass(frozen=True)
class Pair:
    """One question and the passage that answers it."""

    question: str
    """Module, name and arguments of a function or class."""
    passage: str
    """The start of its docstring."""


def collect_pairs() -> list[Pair]:
    """Returns all pairs, in an order that depends on the texts alone; each passage occurs once."""
    by_passage: dict[str, Pair] = {}
    for name in sorted(sys.stdlib_module_names - _NOT_IMPORTED):
        for module in _with_submodules(name):
            for pair in _pairs_of(module):
                by_passage.setdefault(pair.passage, pair)
    return sorted(by_passage.values(), key=lambda pair: (zlib.crc32(pair.passage.encode()), pair.question))


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Returns (training pairs, held-out pairs)."""
    return pairs[NUM_HELD_OUT:], pairs[:NUM_HELD_OUT]


def _with_submodules(name: str) -> Iterator[types.ModuleType]:
    module = _import(name)
    if module is None:
        return
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not found.name.startswith(("_", "test", "idle")):
            submodule = _import(f"{name}.{found.name}")
            if submodule is not None:
                yield submodule


def _import(name: str) -> types.ModuleType | None:
    """Imports a module quietly; None where this platform lacks it."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except (ImportError, AttributeError, OSError):
            return None


def _pairs_of(module: types.ModuleType) -> Iterator[Pair]:
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(member) or inspect.isclass(member)):
            continue
        yield from _pair(f"{module.__name__} {name}", member)
        if inspect.isclass(member) and _root(member.__module__) == _root(module.__name__):
            for method_name, method in sorted(vars(member).items()):
                if not method_name.startswith("_") and inspect.isroutine(method):
                    yield from _pair(f"{module.__name__} {name} {method_name}", method)


def _root(module_name: str) -> str:
    """The package that a module belongs to; `_io` counts as `io`."""
    return module_name.partition(".")[0].lstrip("_")


def _pair(name: str, member: object) -> Iterator[Pair]:
    doc = inspect.getdoc(member) if isinstance(getattr(member, "__doc__", None), str) else None
    passage = _SIGNATURE_LINE.sub("", doc or "").strip()[:_MAX_PASSAGE]
    if len(passage) >= _MIN_PASSAGE:
        yield Pair(f"{name} {_arguments(member)}".strip(), passage)


def _arguments(member: object) -> str:
    try:
        return " ".join(inspect.signature(member).parameters)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):  # some signatures are written in C and cannot be read
        return ""
