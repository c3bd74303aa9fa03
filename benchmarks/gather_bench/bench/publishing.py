"""What becomes of a report: the file, the terminal and the exit status of the command."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 1
REFUSED = 2
BY_SIGNAL = 128
"""Shells add a signal's number to this in the exit status."""
_UNREAD = BY_SIGNAL + 13
"""As of a program that SIGPIPE has ended, because nobody reads what it writes any more."""


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


def publish(report: R, files: Sequence[File[R]], print_report: "Callable[[Console, R], None]") -> int:
    """Writes the files, then prints, so that they are kept where nobody reads to the end; returns the exit status."""
    problem = next(filter(None, [_write(report, file) for file in files]), None)
    is_read = _print(report, print_report)
    if problem is None and not report.has_measured:
        problem = "nothing was measured"
    if problem is not None:
        typer.echo(f"Error: {problem}", err=True)
    if not is_read:
        return _UNREAD
    return 0 if report.is_sound and problem is None else FAILED


def _write(report: R, file: File[R]) -> str | None:
    try:
        file.path.write_text(file.to_text(report), encoding="utf-8", errors="xmlcharrefreplace")
    except OSError as exc:
        return f"{file.option} {file.path}: {exc.strerror}"
    return None


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
