"""What becomes of a report: the file, the terminal and the exit status of the command."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

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


def publish(report: R, json: Path | None, print_report: "Callable[[Console, R], None]") -> int:
    """Writes the report, then prints it, so that it is kept where nobody reads to the end; returns the exit status."""
    problem = _write(report, json) if json is not None else None
    is_read = _print(report, print_report)
    if problem is None and not report.has_measured:
        problem = "nothing was measured"
    if problem is not None:
        typer.echo(f"Error: {problem}", err=True)
    if not is_read:
        return _UNREAD
    return 0 if report.is_sound and problem is None else FAILED


def _write(report: AnyReport, json: Path) -> str | None:
    try:
        json.write_text(report.to_json(), encoding="utf-8")
    except OSError as exc:
        return f"--json {json}: {exc.strerror}"
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
