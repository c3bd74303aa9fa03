"""The part of a page that a command makes, between two markers."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MadePart:
    """Markers, each a line of its own."""

    start: str
    end: str

    def problem(self, page: Path) -> str | None:
        """Says why this page cannot take the part, or returns None."""
        try:
            text = page.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            return f"it cannot be read: {exc}"
        if text.count(self.start) != 1 or text.count(self.end) != 1 or text.index(self.start) > text.index(self.end):
            return f"it must hold the lines {self.start!r} and {self.end!r}, once and in this order"
        return None

    def put(self, page: Path, text: str) -> None:
        """Replaces what is between the markers.

        Raises:
            ValueError: The page does not hold them, or cannot be read.
            OSError: It cannot be written.
        """
        if problem := self.problem(page):
            raise ValueError(problem)
        before, _, rest = page.read_text(encoding="utf-8").partition(self.start)
        after = rest.partition(self.end)[2]
        page.write_text(f"{before}{self.start}\n\n{text}\n{self.end}{after}", encoding="utf-8")
