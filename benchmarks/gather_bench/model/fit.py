"""Fitting: what one of each term costs, so that the points with few ranks are met; and how far it is off elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from gather_bench.model.nonnegative import nonnegative_least_squares
from gather_bench.model.points import Measured, Way
from gather_bench.model.terms import Term
from gather_bench.model.work import Job, Work

FITTED_UP_TO = 4
"""Ranks; points with more check what was fitted."""
WITHIN = 0.30
"""How far off a checked point may be, as a share of what was measured."""

Costs = Mapping[Term, float]


class CannotFitError(ValueError):
    """The points do not suffice; the message says what to measure."""


@dataclass(frozen=True)
class Residual:
    """A measured point beside what the model says of it."""

    point: Measured
    modelled: float
    """Seconds."""

    @property
    def error(self) -> float:
        """As a share of what was measured; above 0 where the model says more."""
        return self.modelled / self.point.seconds - 1

    @property
    def is_check(self) -> bool:
        """Whether the fit has not seen it."""
        return self.point.job.world_size > FITTED_UP_TO


@dataclass(frozen=True)
class Verdict:
    """How well the checked points of one way are met."""

    way: Way
    within: int
    checked: int
    largest_error: float
    """With its sign."""
    median_error: float
    """Of the sizes of the errors."""

    @property
    def holds(self) -> bool:
        """Whether all are within `WITHIN`."""
        return self.within == self.checked


@dataclass(frozen=True)
class Fit:
    """What the terms cost with one codec."""

    codec: str
    costs: Costs
    """Seconds of one each, only of the terms that occur in the points."""
    residuals: Sequence[Residual]

    def seconds(self, work: Work, assumed: Costs | None = None) -> float:
        """What this work takes.

        Args:
            work: Counts of terms.
            assumed: Costs of terms that no point has shown, such as those of a network.

        Raises:
            KeyError: It needs a term that is neither fitted nor assumed.
        """
        known = {**(assumed or {}), **self.costs}
        return sum(known[term] * count for term, count in work.items() if count)

    def verdicts(self) -> list[Verdict]:
        """One for each way with points to check."""
        errors: dict[Way, list[float]] = {}
        for residual in self.residuals:
            if residual.is_check:
                errors.setdefault(residual.point.way, []).append(residual.error)
        return [
            Verdict(
                way,
                within=sum(abs(error) <= WITHIN for error in each),
                checked=len(each),
                largest_error=max(each, key=abs),
                median_error=median(map(abs, each)),
            )
            for way, each in errors.items()
        ]


def fit_all(points: Sequence[Measured]) -> list[Fit]:
    """Fits each codec by itself, and the peer.

    Raises:
        CannotFitError: Of no codec are there enough points.
    """
    codecs = dict.fromkeys(point.way.codec for point in points)
    fits = [fit(codec, [point for point in points if point.way.codec == codec]) for codec in codecs]
    if not fits:
        raise CannotFitError("nothing was measured that the model knows: gloo, shm, shm+gloo, all_gather_list")
    return fits


def fit(codec: str, points: Sequence[Measured]) -> Fit:
    """Fits the points with up to `FITTED_UP_TO` ranks, so that the squares of relative errors are least.

    Raises:
        CannotFitError: There are fewer of them than terms, or they all have the same number of ranks.
    """
    seen = [point for point in points if point.job.world_size <= FITTED_UP_TO]
    works = [point.way.work(point.job) for point in seen]
    terms = [term for term in Term if any(work.get(term) for work in works)]
    _check_enough(codec, [point.job for point in seen], len(terms))
    relative = np.array(
        [[work.get(term, 0) / point.seconds for term in terms] for work, point in zip(works, seen, strict=True)]
    )
    largest = relative.max(axis=0)  # the unknowns are of one size then, whatever their units
    costs = nonnegative_least_squares(relative / largest, np.ones(len(seen))) / largest
    fitted = dict(zip(terms, map(float, costs), strict=True))
    return Fit(codec, fitted, _residuals(points, fitted))


def _check_enough(codec: str, jobs: Sequence[Job], num_terms: int) -> None:
    world_sizes = {job.world_size for job in jobs}
    if len(world_sizes) < 2 or len(jobs) < num_terms:
        raise CannotFitError(
            f"{codec}: {len(jobs)} points with {len(world_sizes)} numbers of ranks up to {FITTED_UP_TO} do not suffice "
            f"for {num_terms} unknowns: measure more sizes and, for instance, --ranks 1,2,3,4,8,16"
        )


def _residuals(points: Sequence[Measured], costs: Costs) -> list[Residual]:
    """A term that occurs in no point that was fitted costs nothing here."""
    return [
        Residual(point, sum(costs.get(term, 0.0) * count for term, count in point.way.work(point.job).items()))
        for point in points
    ]
