"""Counts in plain words, for all that the command prints."""

from collections.abc import Iterable


def count(number: int, what: str) -> str:
    """Says "1 rank" or "2 ranks"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def listing(items: Iterable[object]) -> str:
    """Says "2, 4 and 8"."""
    *others, last = map(str, items)
    return f"{', '.join(others)} and {last}" if others else last
