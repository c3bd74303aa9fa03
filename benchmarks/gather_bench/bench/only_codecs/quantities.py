"""Seconds and bytes for people: three digits that count, and a unit."""

from collections.abc import Sequence

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def seconds_text(seconds: float) -> str:
    """Says "1.23 us" or "45.6 ms"."""
    return _text(seconds, _SECONDS)


def nbytes_text(nbytes: int) -> str:
    """Says "159 B" or "6.32 MB", of 1,000,000 bytes."""
    return f"{nbytes} B" if nbytes < 1000 else _text(nbytes, _BYTES)


def _text(value: float, units: Sequence[tuple[float, str]]) -> str:
    """In the largest unit in which it is at least 1, or the smallest."""
    scale, unit = next((unit for unit in units if value >= unit[0] * 0.9995), units[-1])
    return f"{three_digits(value / scale)} {unit}"


def three_digits(number: float) -> str:
    """Three digits that count, as far as there are any behind the point."""
    decimals = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:,.{decimals}f}"
