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
    # These open windows or browsers, print, touch the terminal, or are huge.
    {
        "__hello__",
        "__main__",
        "__phello__",
        "antigravity",
        "idlelib",
        "lib2to3",
        "rlcompleter",
        "test",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
    }
)
_MAX_PASSAGE = 400
_MIN_PASSAGE = 20
NUM_HELD_OUT = 1000


@dataclass(frozen=True)
class Pair:
    """One question and the passage that answers it."""

    question: str
    """Module, name and arguments of a function or class."""
    passage: str
    """The start of its docstring, without the signature that some docstrings begin with."""


def collect_pairs() -> list[Pair]:
    """Returns all pairs, in an order that depends on the texts alone; each passage occurs once."""
    by_passage: dict[str, Pair] = {}
    for name in sorted(sys.stdlib_module_names - _NOT_IMPORTED):
        for module in _with_submodules(name):
            for pair in _pairs_of(module):
                by_passage.setdefault(pair.passage, pair)
    return sorted(by_passage.values(), key=lambda pair: (zlib.crc32(pair.passage.encode()), pair.question))


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Returns (training pairs, held-out pairs): the hashes that order the pairs choose those held out."""
    return pairs[NUM_HELD_OUT:], pairs[:NUM_HELD_OUT]


def _with_submodules(name: str) -> Iterator[types.ModuleType]:
    module = _import(name)
    if module is None:
        return
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not found.name.startswith(("_", "test", "idle")):
            yield from _with_submodules(f"{name}.{found.name}")


def _import(name: str) -> types.ModuleType | None:
    """Imports a module quietly; None where this platform lacks it."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except (ImportError, AttributeError, OSError):
            return None


def _pairs_of(module: types.ModuleType) -> Iterator[Pair]:
    place = module.__name__.lstrip("_")
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(member) or inspect.isclass(member)):
            continue
        yield from _pair(place, name, member)
        if inspect.isclass(member) and _root(member.__module__) == _root(module.__name__):
            for method_name, method in sorted(vars(member).items()):
                if not method_name.startswith("_") and inspect.isroutine(method):
                    yield from _pair(f"{place} {name}", method_name, method)


def _root(module_name: str) -> str:
    """The package that a module belongs to; `_io` counts as `io`."""
    return module_name.partition(".")[0].lstrip("_")


def _pair(place: str, name: str, member: object) -> Iterator[Pair]:
    doc = inspect.getdoc(member) if isinstance(getattr(member, "__doc__", None), str) else None
    passage = without_signatures(doc or "", name)[:_MAX_PASSAGE]
    if len(passage) >= _MIN_PASSAGE:
        yield Pair(f"{place} {name} {_arguments(member)}".strip(), passage)


def without_signatures(doc: str, name: str) -> str:
    """Drops the lines `name(args) -> result` with which a docstring may start: they repeat the question."""
    arguments = r"\([^()]*(?:\([^()]*\)[^()]*)*\)"
    signature = re.compile(rf"(?:[\w.]+\.)?{re.escape(name)}\s*{arguments}\s*(?:-{{1,2}}>.*|=>.*|--?|:)?\s*")
    doc = doc.strip()
    while found := signature.match(doc):
        doc = doc[found.end() :]
    return doc


def _arguments(member: object) -> str:
    try:
        return " ".join(inspect.signature(member).parameters)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):  # some signatures are written in C and cannot be read
        return ""
