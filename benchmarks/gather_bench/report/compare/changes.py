"""The rows that two reports have in common, and whether their times differ beyond noise."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gather_bench.bench.results import WITHOUT_COLLECTIVE, Report, Row, Timing
from gather_bench.report.compare.by_launches import MIN_LAUNCHES, judge_launches, launch_medians
from gather_bench.report.compare.by_rounds import MIN_ROUNDS, judge_rounds
from gather_bench.report.compare.differences import Difference, differences
from gather_bench.report.compare.judgement import Judgement, OldAndNew, relative_to

MIN_CHANGE = 1.1
"""Smaller factors are not reported, however sure they are."""
_SAME_SIZE = 0.01
"""Payloads of one name are the same where their sizes differ by at most this share of the larger one."""

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
    """Whether it is beyond noise; where it is judged by rounds, in the fast rounds as in the middle ones."""

    @property
    def has_another_payload(self) -> bool:
        """Whether what was gathered has another size now, which says nothing about the code; it is not judged."""
        return _is_of_another_size(self.old, self.new)


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
    is_by_launches: bool
    """Whether noise is what launches of the workers differ by, and not guessed from rounds and peers."""

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


_Relative: TypeAlias = Callable[[_Pair, Sequence[_Pair]], OldAndNew]
"""What is observed of a pair, relative to references."""


def compare(old: Report, new: Report) -> Comparison:
    """Compares what both have measured."""
    rows_of_old = {_key(row): row for row in old.rows}
    pairs = list(_pairs(old.rows, new.rows))
    return Comparison(
        changes(old.rows, new.rows),
        list(dict.fromkeys(pair.new.way for group in _peers(pairs).values() for pair in group)),
        differences(old, new),
        [row for row in new.rows if row.seconds is None and _was_measured(rows_of_old.get(_key(row)))],
        _have_launches(pairs),
    )


def changes(old: Sequence[Row], new: Sequence[Row]) -> Sequence[Change]:
    """Compares the Gatherers of both; peers are what times are relative to, and show how much noise there is."""
    pairs = list(_pairs(old, new))
    peers = _peers(pairs)
    ours = [pair for pair in pairs if pair.new.codec is not None]
    relative, judge = (_by_launches, judge_launches) if _have_launches(pairs) else (_by_rounds, judge_rounds)
    judged = [pair for pair in ours if _place(pair.new) in peers and _can_be_judged(pair)]
    judgements = judge(
        [relative(pair, peers[_place(pair.new)]) for pair in judged],
        [_controls(group, relative) for group in peers.values() if len(group) > 1],
    )
    judgement_of = {_key(pair.new): each for pair, each in zip(judged, judgements, strict=True)}
    return [_change(pair, judgement_of.get(_key(pair.new))) for pair in ours]


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
        if pair.new.codec is None and pair.new.way not in WITHOUT_COLLECTIVE and _can_be_judged(pair):
            groups.setdefault(_place(pair.new), []).append(pair)
    return groups


def _can_be_judged(pair: _Pair) -> bool:
    has_enough_rounds = min(len(pair.old_timing.rounds), len(pair.new_timing.rounds)) >= MIN_ROUNDS
    return has_enough_rounds and not _is_of_another_size(pair.old, pair.new)


def _is_of_another_size(old: Row, new: Row) -> bool:
    if old.payload_nbytes is None or new.payload_nbytes is None:
        return False
    least, most = sorted((old.payload_nbytes, new.payload_nbytes))
    return most - least > _SAME_SIZE * most


def _have_launches(pairs: Sequence[_Pair]) -> bool:
    """Whether all rows of both reports have enough launches."""
    timings = [timing for pair in pairs for timing in (pair.old_timing, pair.new_timing)]
    return bool(timings) and all(len(timing.launches) >= MIN_LAUNCHES for timing in timings)


def _controls(group: Sequence[_Pair], relative: _Relative) -> Sequence[OldAndNew]:
    """Each peer relative to the others: it runs the same code in both."""
    return [relative(pair, [other for other in group if other is not pair]) for pair in group]


def _by_rounds(pair: _Pair, references: Sequence[_Pair]) -> OldAndNew:
    return (
        relative_to(pair.old_timing.rounds, [reference.old_timing.rounds for reference in references]),
        relative_to(pair.new_timing.rounds, [reference.new_timing.rounds for reference in references]),
    )


def _by_launches(pair: _Pair, references: Sequence[_Pair]) -> OldAndNew:
    old, new = _by_rounds(pair, references)
    return launch_medians(old, pair.old_timing.launches), launch_medians(new, pair.new_timing.launches)


def _change(pair: _Pair, judgement: Judgement | None) -> Change:
    medians = pair.old_timing.median, pair.new_timing.median
    if judgement is None:
        return Change(pair.old, pair.new, *medians, None, None, "not judged")
    margin = max(math.log(MIN_CHANGE), judgement.margin)
    verdict: Verdict = "same" if abs(judgement.least) < margin else "slower" if judgement.least > 0 else "faster"
    return Change(pair.old, pair.new, *medians, math.exp(judgement.moved), math.exp(margin), verdict)
