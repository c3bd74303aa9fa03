"""What the user wants of a report, just measured or read from a file: other files, a comparison, an exit status."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gather_bench.bench.publishing import FAILED, File, publish
from gather_bench.bench.recommendation import is_borne_out, may_be_replaced, to_settings
from gather_bench.bench.results import Report
from gather_bench.model.options import ModelOptions
from gather_bench.report.flat_rows import to_csv
from gather_bench.report.page import SECTIONS, to_html

if TYPE_CHECKING:
    from rich.console import Console

    from gather_bench.model.study import Study


class UnreadableError(ValueError):
    """A report of an earlier run cannot be read; the message says why."""


@dataclass(frozen=True)
class Outputs:
    """What to do with a report, beside printing it."""

    json: Path | None = None
    html: Path | None = None
    csv: Path | None = None
    settings: Path | None = None
    """The recommendation, for `Gatherer.from_settings`."""
    compare: Path | None = None
    """The report of an older run."""
    fail_on_slower: bool = False
    model: ModelOptions | None = None

    @property
    def paths(self) -> Mapping[str, Path]:
        """The files to write, by option."""
        paths = {
            "--json": self.json,
            "--html": self.html,
            "--csv": self.csv,
            "--settings": self.settings,
            "--markdown": self.model.markdown if self.model else None,
        }
        return {option: path for option, path in paths.items() if path is not None}

    @property
    def old_launches(self) -> int | None:
        """Of the older run, so often local workers were started; None where there is none to compare with."""
        old = self._old()
        return None if old is None else old.options.launches

    def find_problem(self) -> str | None:
        """Says why there can be no comparison, before anything is measured, or returns None."""
        if self.fail_on_slower and self.compare is None:
            return "--fail-on-slower goes with --compare"
        if self.settings is not None and not may_be_replaced(self.settings):
            return f"--settings {self.settings}: this file is not from gather bench, and is not replaced"
        try:
            self._old()
        except UnreadableError as exc:
            return f"--compare {exc}"
        return self.model.find_problem() if self.model else None

    def publish(self, report: Report) -> int:
        """Writes and prints all that is wanted; returns the exit status."""
        from gather_bench.report.compare.changes import compare

        old = self._old()
        comparison = compare(old, report) if old is not None else None
        study = self._study(report)

        def print_all(console: "Console", report: Report) -> None:
            from gather_bench.bench.table import print_report
            from gather_bench.report.compare.terminal import print_comparison

            print_report(console, report)
            if comparison is not None:
                print_comparison(console, comparison)
            if study is not None:
                from gather_bench.model.terminal import print_study

                print_study(console, study)

        status = publish(report, self._files(old, study), print_all)
        is_slower = comparison is not None and comparison.has_slower
        has_failed = (self.model is not None and study is None) or (self.fail_on_slower and is_slower)
        return status or (FAILED if has_failed else 0)

    def _study(self, report: Report) -> "Study | None":
        """None too where it cannot be made, after a line that says why: the report is shown all the same."""
        if self.model is None:
            return None
        from gather_bench.model.fit import CannotFitError

        try:
            return self.model.study(report)
        except CannotFitError as exc:
            typer.echo(f"Error: --model: {exc}", err=True)
        except OSError as exc:
            typer.echo(f"Error: --markdown {self.model.markdown}: {exc.strerror}", err=True)
        return None

    def _old(self) -> Report | None:
        return None if self.compare is None else read_report(self.compare)

    def _files(self, old: Report | None, study: "Study | None") -> Sequence[File[Report]]:
        texts: dict[str, Callable[[Report], str]]
        texts = {
            "--json": Report.to_json,
            "--html": partial(_page, old, study),
            "--csv": to_csv,
            "--settings": to_settings,
        }
        return [File(option, path, texts[option]) for option, path in self.paths.items() if option in texts]


def read_report(path: Path) -> Report:
    """Reads what `--json` has written; a recommendation that its rows do not bear out is left out.

    Raises:
        UnreadableError: It is no such file.
    """
    try:
        report = Report.from_json(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UnreadableError(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise UnreadableError(f"{path}: {exc}") from exc
    found = report.recommendation
    return report if found is None or is_borne_out(found, report.rows) else replace(report, recommendation=None)


def _page(old: Report | None, study: "Study | None", report: Report) -> str:
    """The comparison, where there is one, stands behind the summary, the model behind what was measured."""
    from gather_bench.report.sections.comparison import compared_with
    from gather_bench.report.sections.scaling import scaling

    head, summary, *others = SECTIONS
    sections = [head, summary]
    if old is not None:
        sections.append(partial(compared_with, old))
    sections += others
    if study is not None:
        sections.append(partial(scaling, study))
    return to_html(report, sections)
