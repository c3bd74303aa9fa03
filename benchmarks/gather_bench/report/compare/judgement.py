"""What the statistics of a comparison make of one row, and what both ways to judge share."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Logs: TypeAlias = NDArray[Any]
"""Float64 array of shape (rounds,) or (launches,): natural logarithms of ratios of times."""
OldAndNew: TypeAlias = tuple[Logs, Logs]

_FALSE_ALARMS = 0.05
"""Wanted in so many comparisons of equal runs, all rows together."""


@dataclass(frozen=True)
class Judgement:
    """How far a row has moved and how far it had to, as logarithms."""

    moved: float
    least: float
    """How far even those rounds have moved that have moved least; 0 where some have moved into the other direction."""
    margin: float
    """What `least` must reach to be beyond noise."""


def relative_to(rounds: Sequence[float], references: Sequence[Sequence[float]]) -> Logs:
    """Divides each round by the geometric mean of the references in the same round: what slows all down falls out."""
    logs: Logs = np.log(rounds) - np.mean(np.log(references), axis=0)
    return logs


def quantile_of_t(degrees: float, num_judged: int) -> float:
    """How many standard errors a row may move by chance.

    By Abramowitz and Stegun, 26.7.5, to the third term: within 3 % of what is needed here.

    Args:
        degrees: Of freedom, of the standard error.
        num_judged: How many rows are compared: the more, the further, so that none is beyond by chance (Bonferroni).
    """
    z = NormalDist().inv_cdf(1 - _FALSE_ALARMS / 2 / num_judged)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
