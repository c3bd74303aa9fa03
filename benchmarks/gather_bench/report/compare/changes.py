"""The rows that two reports have in common, and whether their times differ beyond noise."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gather_bench.bench.results import WITHOUT_COLLECTIVE, Report, Row, Timing
from gather_bench.report.compare.differences import Difference, differences
from gather_bench.report.compare.noise import MIN_ROUNDS, Logs, Noise, Shift, median_shift, relative_to, shift

MIN_CHANGE = 1.1
"""Smaller factors are not reported, however sure they are."""

Verdict = Literal["slower", "faster", "same", "not judged"]
_Key: TypeAlias = tuple[str, int, str, str | None, str | None]
_Place: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Change:
    """One row, then and now."""

    old: Row
    new: Row
    old_s: float
    new_s: float
    """Medians, in seconds."""
    factor: float | None
    """How many times longer it takes now, relative to the references; None where there are none."""
    margin: float | None
    """The factor that it must reach to be beyond noise; None where that is not known."""
    verdict: Verdict
    """Whether it is beyond noise, in the fast rounds as in the middle ones."""


@dataclass(frozen=True)
class Comparison:
    """All that two reports have in common."""

    changes: Sequence[Change]
    """Of Gatherers, in the order of the new report."""
    references: Sequence[str]
    """The peers to which times are relative; none: nothing is judged."""
    differences: Sequence[Difference]
    """Of the environments: what may explain a change."""
    lost: Sequence[Row]
    """Rows of the new report that were measured only in the old one, and say why."""

    @property
    def beyond_noise(self) -> Sequence[Change]:
        """Those that are slower or faster."""
        return [change for change in self.changes if change.verdict in ("slower", "faster")]

    @property
    def has_slower(self) -> bool:
        """Whether something is slower beyond noise."""
        return any(change.verdict == "slower" for change in self.changes)


@dataclass(frozen=True)
class _Pair:
    old: Row
    new: Row
    old_timing: Timing
    new_timing: Timing


def compare(old: Report, new: Report) -> Comparison:
    """Compares what both have measured."""
    rows_of_old = {_key(row): row for row in old.rows}
    return Comparison(
        changes(old.rows, new.rows),
        list(dict.fromkeys(pair.new.way for group in _peers(_pairs(old.rows, new.rows)).values() for pair in group)),
        differences(old, new),
        [row for row in new.rows if row.seconds is None and _was_measured(rows_of_old.get(_key(row)))],
    )


def changes(old: Sequence[Row], new: Sequence[Row]) -> Sequence[Change]:
    """Compares the Gatherers of both; peers are what times are relative to, and show how much noise there is."""
    pairs = list(_pairs(old, new))
    peers = _peers(pairs)
    ours = [pair for pair in pairs if pair.new.codec is not None]
    shifts = [_shift(pair, peers.get(_place(pair.new), ())) for pair in ours]
    noise = Noise.of_controls([_controls(group) for group in peers.values() if len(group) > 1])
    num_judged = sum(each is not None for each in shifts)
    return [_change(pair, each, noise, num_judged) for pair, each in zip(ours, shifts, strict=True)]


def _pairs(old: Sequence[Row], new: Sequence[Row]) -> Iterable[_Pair]:
    rows_of_old = {_key(row): row for row in old}
    for row in new:
        before = rows_of_old.get(_key(row))
        if before is not None and before.seconds is not None and row.seconds is not None:
            yield _Pair(before, row, before.seconds, row.seconds)


def _key(row: Row) -> _Key:
    return row.payload, row.world_size, row.way, row.codec, row.transport


def _place(row: Row) -> _Place:
    """Rows of one place have taken turns."""
    return row.payload, row.world_size


def _was_measured(row: Row | None) -> bool:
    return row is not None and row.seconds is not None


def _peers(pairs: Iterable[_Pair]) -> Mapping[_Place, Sequence[_Pair]]:
    """Those that can be references, by place; what slows an exchange down does not slow those that exchange nothing."""
    groups: dict[_Place, list[_Pair]] = {}
    for pair in pairs:
        if pair.new.codec is None and pair.new.way not in WITHOUT_COLLECTIVE and _has_enough_rounds(pair):
            groups.setdefault(_place(pair.new), []).append(pair)
    return groups


def _has_enough_rounds(pair: _Pair) -> bool:
    return min(len(pair.old_timing.rounds), len(pair.new_timing.rounds)) >= MIN_ROUNDS


def _shift(pair: _Pair, references: Sequence[_Pair]) -> Shift | None:
    return shift(*_relative(pair, references)) if references and _has_enough_rounds(pair) else None


def _controls(group: Sequence[_Pair]) -> Sequence[float]:
    """How far each peer seems to have moved, relative to the others: it runs the same code in both."""
    return [median_shift(*_relative(pair, [other for other in group if other is not pair])) for pair in group]


def _relative(pair: _Pair, references: Sequence[_Pair]) -> tuple[Logs, Logs]:
    """The old and the new rounds."""
    return (
        relative_to(pair.old_timing.rounds, [reference.old_timing.rounds for reference in references]),
        relative_to(pair.new_timing.rounds, [reference.new_timing.rounds for reference in references]),
    )


def _change(pair: _Pair, moved: Shift | None, noise: Noise, num_judged: int) -> Change:
    medians = pair.old_timing.median, pair.new_timing.median
    if moved is None:
        return Change(pair.old, pair.new, *medians, None, None, "not judged")
    margin = max(math.log(MIN_CHANGE), noise.margin(moved.variance, num_judged))
    verdict: Verdict = "same" if abs(moved.least) < margin else "slower" if moved.least > 0 else "faster"
    return Change(pair.old, pair.new, *medians, math.exp(moved.median), math.exp(margin), verdict)
