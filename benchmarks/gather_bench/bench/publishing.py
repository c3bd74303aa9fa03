"""What becomes of a report: the file, the terminal and the exit status of the command."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from uuid import uuid4

import typer

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 1
REFUSED = 2
BY_SIGNAL = 128
"""Shells add a signal's number to this in the exit status."""
_UNREAD = BY_SIGNAL + 13
"""As of a program that SIGPIPE has ended, because nobody reads what it writes any more."""


class NothingToWriteError(ValueError):
    """A report has nothing for a file that the user has asked for; the message says why."""


class AnyReport(Protocol):
    """What reports have in common."""

    @property
    def is_sound(self) -> bool:
        """Whether something was measured, and nothing is wrong with it."""

    @property
    def has_measured(self) -> bool:
        """Whether anything was measured."""

    def to_json(self) -> str:
        """Writes it as JSON."""


R = TypeVar("R", bound=AnyReport)


@dataclass(frozen=True)
class File(Generic[R]):
    """A file that the user has asked for."""

    option: str
    """That names it."""
    path: Path
    to_text: Callable[[R], str]
    """May raise NothingToWriteError."""


def publish(report: R, files: Sequence[File[R]], print_report: "Callable[[Console, R], None]") -> int:
    """Writes the files, then prints, so that they are kept where nobody reads to the end; returns the exit status."""
    problems = list(filter(None, [_write(report, file) for file in files]))
    is_read = _print(report, print_report)
    if not report.has_measured:
        problems.append("nothing was measured")
    for problem in problems:
        typer.echo(f"Error: {problem}", err=True)
    if not is_read:
        return _UNREAD
    return 0 if report.is_sound and not problems else FAILED


def _write(report: R, file: File[R]) -> str | None:
    try:
        _write_whole(file.path, file.to_text(report))
    except OSError as exc:
        return f"{file.option} {file.path}: {exc.strerror}"
    except NothingToWriteError as exc:
        return f"{file.option} {file.path} is not written: {exc}"
    return None


def _write_whole(path: Path, text: str) -> None:
    """Replaces the file, or leaves it as it was; of a link, the file that it leads to."""
    if path.exists() and not path.is_file():
        _write_text(path, text)  # a device or a pipe
        return
    path = path.resolve()
    part = path.with_name(f".{uuid4().hex}.tmp")
    try:
        _write_text(part, text)
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def _print(report: R, print_report: "Callable[[Console, R], None]") -> bool:
    """Returns whether anybody reads it; where not, nothing is printed any more."""
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        print_report(console, report)
    try:
        sys.stdout.write(captured.get())
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its end
        return False
    return True
