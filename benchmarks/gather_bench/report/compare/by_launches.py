"""Judging by launches, where the workers were started several times: these differ as runs of the same code do.

The observations are the medians of the launches. Processes that were started anew lie differently in memory and on the
cores, and run at another time, by which times differ more than between the rounds of one launch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gather_bench.report.compare.judgement import Judgement, Logs, OldAndNew, quantile_of_t

MIN_LAUNCHES = 3
"""With fewer the scatter between launches is not known."""
_BORROWED_DEGREES = 4
"""So many degrees of freedom each row takes from the scatter of the others, as in the moderated t-statistic of Smyth
(2004), since a row alone has few launches."""
_STILL_DEGREES = 4
"""Before they are looked at, peers count as having moved as far as they scatter, with so many degrees of freedom."""
_LEAST_VARIANCE = 1e-8
"""Against dividing by 0: nothing that is measured scatters by less than 0.01 %."""


@dataclass(frozen=True)
class _Mean:
    """Over the launches of one report."""

    value: float
    variance: float
    """Of the mean."""
    degrees: int
    """Of freedom, of the variance."""


@dataclass(frozen=True)
class _Shift:
    """From one report to the other."""

    moved: float
    variance: float
    degrees: float


def launch_medians(rounds: Logs, launches: Sequence[int]) -> Logs:
    """Returns the median of each launch's rounds; `launches` says how many each has."""
    ends = np.cumsum(launches)[:-1]
    return np.array([np.median(part) for part in np.split(rounds, ends)])


def judge_launches(rows: Sequence[OldAndNew], controls: Sequence[Sequence[OldAndNew]]) -> list[Judgement]:
    """Judges each row, by Welch's test with moderated variances.

    Args:
        rows: Medians of their launches, relative to the references.
        controls: Those of peers, which run the same code in both, relative to the other peers; by place, two or more.
    """
    restlessness = _restlessness(controls)
    judgements = []
    for shift in _shifts(rows):
        margin = quantile_of_t(shift.degrees, len(rows)) * math.sqrt(shift.variance * restlessness)
        judgements.append(Judgement(shift.moved, shift.moved, margin))
    return judgements


def _restlessness(controls: Sequence[Sequence[OldAndNew]]) -> float:
    """How many times the variance between the reports is that which their launches show; at least 1.

    Learnt from what has not changed, as the scale factor of Birge (1932): a machine that is another one an hour later
    moves peers further than they scatter from launch to launch.
    """
    shifts = iter(_shifts([control for group in controls for control in group]))
    observed, degrees = 0.0, 0
    for group in controls:
        squares = [shift.moved**2 / shift.variance for shift in islice(shifts, len(group))]
        observed += float(np.mean(squares)) * (len(group) - 1)
        degrees += len(group) - 1
    return max(1.0, (_STILL_DEGREES + observed) / (_STILL_DEGREES + degrees))


def _shifts(rows: Sequence[OldAndNew]) -> Iterator[_Shift]:
    means = zip(_means([old for old, _ in rows]), _means([new for _, new in rows]), strict=True)
    for old, new in means:
        variance = old.variance + new.variance
        degrees = variance**2 / (old.variance**2 / old.degrees + new.variance**2 / new.degrees)
        yield _Shift(new.value - old.value, variance, degrees)


def _means(rows: Sequence[Logs]) -> Iterator[_Mean]:
    """Of the rows of one report."""
    variances = np.array([np.var(row, ddof=1) for row in rows])
    for number, row in enumerate(rows):
        others = np.delete(variances, number)
        own_degrees = len(row) - 1
        borrowed = min(_BORROWED_DEGREES, own_degrees * len(others))
        usual = np.mean(others) if len(others) else 0.0
        degrees = own_degrees + borrowed
        variance = (own_degrees * variances[number] + borrowed * usual) / degrees
        yield _Mean(float(np.mean(row)), max(float(variance), _LEAST_VARIANCE) / len(row), degrees)
