"""Counts in plain words, for all that the command prints."""


def count(number: int, what: str) -> str:
    """Says "1 rank" or "2 ranks"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
