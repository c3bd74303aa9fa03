"""Counts in plain words, for all that the command prints."""

from collections.abc import Iterable

from gather_bench.bench.options import Options


def count(number: int, what: str) -> str:
    """Says "1 rank" or "2 ranks"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def listing(items: Iterable[object]) -> str:
    """Says "2, 4 and 8"."""
    *others, last = map(str, items)
    return f"{', '.join(others)} and {last}" if others else last


def rounds_text(options: Options) -> str:
    """Says "15 rounds" or "80 rounds in 8 launches"."""
    rounds = count(options.rounds, "round")
    return rounds if options.launches == 1 else f"{rounds} in {options.launches} launches"
