"""What the doctor says: findings, in three levels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gather_core.errors import format_ranks

Level = Literal["ok", "slow", "fails"]
LEVELS: Sequence[Level] = ("fails", "slow", "ok")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, in one line, and how to mend it in another."""

    level: Level
    subject: str
    """A word or two: what was looked at."""
    what: str
    mend: str = ""
    """Empty where there is nothing to mend."""
    ranks: tuple[int, ...] = ()
    """Whom it is about; empty: the job as a whole."""


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Joins what several ranks have found alike, and sorts it: the worst first, then as it came.

    Of what is fine only the first text of a subject is kept, with all its ranks: how much memory each of a thousand
    ranks has left is no news.
    """
    merged: dict[tuple[str, ...], Finding] = {}
    differs: set[tuple[str, ...]] = set()
    for one in findings:
        key = (one.level, one.subject) if one.level == "ok" and one.ranks else (one.level, one.subject, one.what)
        first = merged.setdefault(key, one)
        if first.what != one.what:
            differs.add(key)
        merged[key] = replace(first, ranks=tuple(sorted({*first.ranks, *one.ranks})))
    told = [_with_rank(one) if key in differs else one for key, one in merged.items()]
    return sorted(told, key=lambda one: LEVELS.index(one.level))


def _with_rank(finding: Finding) -> Finding:
    return replace(finding, what=f"{finding.what} (on {format_ranks(finding.ranks[:1])}, other values on others)")


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among them."""
    return min((one.level for one in findings), key=LEVELS.index, default="ok")


def exit_status(findings: Iterable[Finding], *, strict: bool) -> int:
    """0, or 1 where something fails; with `strict` also where something is slow."""
    level = worst(findings)
    return int(level == "fails" or (strict and level == "slow"))


def nbytes_text(nbytes: int) -> str:
    """In the largest unit of which there is at least one: "64 MiB"."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << shift:
            return f"{nbytes / (1 << shift):.3g} {unit}" if nbytes < 1000 << shift else f"{nbytes >> shift} {unit}"
    return f"{nbytes} bytes"
