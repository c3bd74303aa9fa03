"""What is asked of the model, and what it is made from."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gather_bench.bench.results import Report
from gather_bench.model.cluster import Cluster

if TYPE_CHECKING:
    from gather_bench.model.study import Study


@dataclass(frozen=True)
class ModelOptions:
    """`--model` and what goes with it."""

    cluster: Cluster = field(default_factory=Cluster)
    further: tuple[Report, ...] = ()
    """Whose points are taken together with those of the report."""
    threads_per_core: int | None = None
    """Of the machine measured on, where reports do not know."""
    markdown: Path | None = None
    """The page to put it into, with its drawing beside it."""

    def find_problem(self) -> str | None:
        """Says what is wrong before anything is measured, which takes minutes, or returns None."""
        from gather_bench.model.markdown import PART

        if self.markdown is not None and (problem := PART.problem(self.markdown)):
            return f"--markdown {self.markdown}: {problem}"
        return None

    def _with_threads(self, report: Report) -> Report:
        known = report.environment.threads_per_core
        environment = replace(report.environment, threads_per_core=known or self.threads_per_core)
        return replace(report, environment=environment)

    def study(self, report: Report) -> "Study":
        """Fits and predicts, and puts it into the page.

        Raises:
            CannotFitError: The reports do not suffice.
            OSError: The page or its drawing cannot be written.
        """
        from gather_bench.model.markdown import put_into
        from gather_bench.model.study import Study

        study = Study.of([self._with_threads(each) for each in (report, *self.further)], self.cluster)
        if self.markdown is not None:
            put_into(self.markdown, study)
        return study
