"""How far a run is, for those who wait: a bar on a terminal, lines elsewhere; on standard error."""

import sys
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from gather_bench.progress_bar import ProgressBar


class RunProgress(ProgressBar):
    """Of one run, on one rank.

    It draws between the rounds only, and never from a thread, which would take time from what is timed.

    Args:
        shown: Whether this rank is the one that tells.
        payloads: How many there are.
        rounds: Of each payload, with the one that warms up.
    """

    def __init__(self, shown: bool, payloads: int, rounds: int) -> None:
        self._shown = shown
        self._payloads = payloads
        self._rounds = rounds
        self._number = 0
        console = Console(stderr=True)
        columns = (
            *(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("rounds")),
            *(TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()),
        )
        self._is_bar = shown and sys.stderr.isatty()
        bar = Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not self._is_bar)
        super().__init__(bar, payloads * rounds)

    def payload(self, name: str) -> None:
        """Says which one comes next."""
        text = f"[{self._number + 1}/{self._payloads}] {name}"
        self._bar.update(self._task, description=text, completed=self._number * self._rounds, refresh=True)
        self._number += 1
        if not self._is_bar:
            self.say(text)

    def round(self) -> None:
        """Counts one round."""
        self._bar.update(self._task, advance=1, refresh=True)

    def say(self, text: str) -> None:
        """Leaves a line; that nobody reads it is no reason to end a run."""
        if self._is_bar:
            self._bar.console.print(Text(text))
        elif self._shown:
            with suppress(OSError):
                print(text, file=sys.stderr, flush=True)


def show_cursor() -> None:
    """After workers that were ended while they drew a bar, which hides the cursor."""
    if sys.stderr.isatty():
        Console(stderr=True).show_cursor()
