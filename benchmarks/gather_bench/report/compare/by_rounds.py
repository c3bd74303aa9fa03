"""Judging by rounds, where the workers were started once: what runs differ by must be guessed from peers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gather_bench.report.compare.judgement import Judgement, Logs, OldAndNew, quantile_of_t

MIN_ROUNDS = 5
"""With fewer the spread between rounds is not known."""
_RESAMPLES = 400
_ROUNDS_IN_A_ROW = 3
"""Are drawn together: what disturbs a round often lasts into the next ones."""
_QUANTILES = (0.1, 0.25, 0.5, 0.75)
"""Slower code moves all of these; other work on the machine moves the slow rounds more than the fast ones."""
_USUAL_SPREAD = 0.03
_USUAL_DEGREES = 4
"""Two runs on an idle machine differ by some 3 % in a ratio. This is worth as much as so many observations, as in the
moderated t-statistic of Smyth (2004), since a comparison alone has few."""


def judge_rounds(rows: Sequence[OldAndNew], controls: Sequence[Sequence[OldAndNew]]) -> list[Judgement]:
    """Judges each row.

    Args:
        rows: Their rounds, relative to the references.
        controls: Those of peers, which run the same code in both, relative to the other peers; by place, two or more.
    """
    shifts = [shift(*row) for row in rows]
    noise = Noise.of_controls([[median_shift(*control) for control in group] for group in controls])
    return [Judgement(each.median, each.least, noise.margin(each.variance, len(rows))) for each in shifts]


@dataclass(frozen=True)
class Shift:
    """How far the rounds have moved, as logarithms, and what the spread between them makes of it."""

    median: float
    least: float
    """Of several quantiles, the one that has moved least; 0 where they have not all moved into one direction."""
    variance: float
    """Of the median."""


def shift(old: Logs, new: Logs) -> Shift:
    """Compares two runs; the same arguments give the same result."""
    moved = [float(each) for each in np.quantile(new, _QUANTILES) - np.quantile(old, _QUANTILES)]
    least = 0.0 if min(moved) < 0 < max(moved) else min(moved, key=abs)
    variance = _variance_of_median(old) + _variance_of_median(new)
    return Shift(median_shift(old, new), least, variance)


def median_shift(old: Logs, new: Logs) -> float:
    """How far the median alone has moved."""
    return float(np.median(new) - np.median(old))


def _variance_of_median(logs: Logs) -> float:
    """By a moving-block bootstrap (Künsch 1989), around the end to the start."""
    rounds = len(logs)
    num_blocks = math.ceil(rounds / _ROUNDS_IN_A_ROW)
    starts = np.random.default_rng(0).integers(rounds, size=(_RESAMPLES, num_blocks, 1))
    drawn = (starts + np.arange(_ROUNDS_IN_A_ROW)).reshape(_RESAMPLES, -1)[:, :rounds] % rounds
    return float(np.median(logs[drawn], axis=1).var())


@dataclass(frozen=True)
class Noise:
    """What two runs of the same code differ by, beside what their rounds show."""

    variance: float
    degrees: int
    """Of freedom, of the variance."""

    @classmethod
    def of_controls(cls, groups: Sequence[Sequence[float]]) -> "Noise":
        """Learns it from what has not changed: each group has the shifts, relative to each other, of at least two."""
        degrees = sum(len(group) - 1 for group in groups)
        observed = sum(float(np.mean(np.square(group))) * (len(group) - 1) for group in groups)
        usual = _USUAL_DEGREES * _USUAL_SPREAD**2
        return cls((usual + observed) / (_USUAL_DEGREES + degrees), _USUAL_DEGREES + degrees)

    def margin(self, variance: float, num_judged: int) -> float:
        """How far rounds must move to be beyond noise, as a logarithm.

        Args:
            variance: What the spread between rounds makes of the median.
            num_judged: How many rows are compared: the more, the further, so that none is beyond by chance.
        """
        return quantile_of_t(self.degrees, num_judged) * math.sqrt(variance + self.variance)
