"""What can be wrong with the options before any rank has started, on this machine alone."""

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from gather_bench.bench.options import Options
from gather_bench.bench.payloads import PayloadError, payload
from gather_core import GatherError
from gather_core.registry import AUTO, get_codec, get_transport


def find_problem(options: Options, files: Mapping[str, Path]) -> str | None:
    """Says which option is wrong and what would be right, or returns None.

    Args:
        options: Specs and names are looked up, and so imported; nothing is opened.
        files: Where something is to be written, by the option that says so.
    """
    return next(chain(_problems(options), unusable(files)), None)


def _problems(options: Options) -> Iterator[str]:
    yield from _refusals("--codec", options.codecs, get_codec)
    yield from _refusals("--transport", [spec for spec in options.transports if spec != AUTO], get_transport)
    yield from _refusals("--payload", options.payloads, payload)


def _refusals(option: str, values: tuple[str, ...] | list[str], look_up: Callable[[str], object]) -> Iterator[str]:
    for value in values:
        try:
            look_up(value)
        except (GatherError, PayloadError) as exc:
            yield f"{option}: {exc}"


def unusable(files: Mapping[str, Path]) -> Iterator[str]:
    """Says of each file that cannot be written, or that an option before it names too, why not."""
    options: dict[Path, str] = {}
    for option, path in files.items():
        if problem := _unwritable(path):
            yield f"{option} {path}: {problem}"
        first = options.setdefault(path.resolve(), option)
        if first != option:
            yield f"{option} {path}: it is the file of {first} too"


def _unwritable(path: Path) -> str | None:
    if path.is_dir():
        return "it is a folder"
    if not path.parent.is_dir():
        return "its folder does not exist"
    if path.exists() and not os.access(path, os.W_OK):
        return "it cannot be written"
    if not os.access(path.resolve().parent, os.W_OK) and (path.is_file() or not path.exists()):
        return "its folder cannot be written"
    return None
