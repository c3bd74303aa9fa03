"""All that `gather bench --model` has to say of one or more reports."""

from collections.abc import Sequence
from dataclasses import dataclass

from gather_bench.bench.results import Environment, Report
from gather_bench.model.cluster import Cluster
from gather_bench.model.fit import CannotFitError, Fit, fit_all
from gather_bench.model.points import points_of
from gather_bench.model.predict import Prediction, predict


@dataclass(frozen=True)
class Study:
    """What was fitted, to what, and what follows."""

    environment: Environment
    """Of the first report."""
    num_reports: int
    fits: Sequence[Fit]
    cluster: Cluster
    predictions: Sequence[Prediction]

    @classmethod
    def of(cls, reports: Sequence[Report], cluster: Cluster) -> "Study":
        """Fits and predicts.

        Raises:
            CannotFitError: The reports do not suffice, or are of different machines.
        """
        machines = {(each.environment.cpu_model, each.environment.cpu_count) for each in reports}
        if len(machines) > 1:
            named = " and ".join(sorted(f"{count} x {model}" for model, count in machines))
            raise CannotFitError(f"the reports are of different machines: {named}")
        fits = fit_all(points_of(reports))
        return cls(reports[0].environment, len(reports), fits, cluster, predict(fits, cluster))
