"""A bar on a terminal, for as long as a `with` block runs."""

from types import TracebackType
from typing import Self

from rich.progress import Progress


class ProgressBar:
    """What shows its progress by one bar of rich.

    Args:
        bar: Drawn in the block, unless it is disabled.
        total: How many steps there are.
    """

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._bar.stop()
