"""What the user wants of a report, just measured or read from a file: other files, a comparison, an exit status."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gather_bench.bench.publishing import FAILED, File, publish
from gather_bench.bench.results import Report
from gather_bench.report.flat_rows import to_csv
from gather_bench.report.page import SECTIONS, to_html

if TYPE_CHECKING:
    from rich.console import Console


class UnreadableError(ValueError):
    """A report of an earlier run cannot be read; the message says why."""


@dataclass(frozen=True)
class Outputs:
    """What to do with a report, beside printing it."""

    json: Path | None = None
    html: Path | None = None
    csv: Path | None = None
    compare: Path | None = None
    """The report of an older run."""
    fail_on_slower: bool = False

    @property
    def paths(self) -> Mapping[str, Path]:
        """The files to write, by option."""
        paths = {"--json": self.json, "--html": self.html, "--csv": self.csv}
        return {option: path for option, path in paths.items() if path is not None}

    def find_problem(self) -> str | None:
        """Says why there can be no comparison, before anything is measured, or returns None."""
        if self.fail_on_slower and self.compare is None:
            return "--fail-on-slower goes with --compare"
        try:
            self._old()
        except UnreadableError as exc:
            return f"--compare {exc}"
        return None

    def publish(self, report: Report) -> int:
        """Writes and prints all that is wanted; returns the exit status."""
        from gather_bench.report.compare.changes import compare

        old = self._old()
        comparison = compare(old, report) if old is not None else None

        def print_all(console: "Console", report: Report) -> None:
            from gather_bench.bench.table import print_report
            from gather_bench.report.compare.terminal import print_comparison

            print_report(console, report)
            if comparison is not None:
                print_comparison(console, comparison)

        status = publish(report, self._files(old), print_all)
        is_slower = comparison is not None and comparison.has_slower
        return status or (FAILED if self.fail_on_slower and is_slower else 0)

    def _old(self) -> Report | None:
        return None if self.compare is None else read_report(self.compare)

    def _files(self, old: Report | None) -> Sequence[File[Report]]:
        texts: dict[str, Callable[[Report], str]]
        texts = {"--json": Report.to_json, "--html": partial(_page, old), "--csv": to_csv}
        return [File(option, path, texts[option]) for option, path in self.paths.items()]


def read_report(path: Path) -> Report:
    """Reads what `--json` has written.

    Raises:
        UnreadableError: It is no such file.
    """
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UnreadableError(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise UnreadableError(f"{path}: {exc}") from exc


def _page(old: Report | None, report: Report) -> str:
    """The comparison, where there is one, stands behind the summary."""
    from gather_bench.report.sections.comparison import compared_with

    if old is None:
        return to_html(report)
    head, summary, *others = SECTIONS
    return to_html(report, [head, summary, partial(compared_with, old), *others])
