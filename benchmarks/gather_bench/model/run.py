"""`gather bench --model`, from reports to what is printed and written, and to the exit status."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import Console

from gather_bench.bench.publishing import FAILED, print_to_end
from gather_bench.bench.results import Report
from gather_bench.model.fit import CannotFitError
from gather_bench.model.markdown import page_problem, put_into
from gather_bench.model.predict import Cluster
from gather_bench.model.study import Study
from gather_bench.model.terminal import print_study


@dataclass(frozen=True)
class ModelOptions:
    """What is asked of the model."""

    cluster: Cluster = field(default_factory=Cluster)
    markdown: Path | None = None
    """The page to put it into, with its drawing beside it."""


def model_files(files: Sequence[Path], options: ModelOptions) -> int:
    """Models what files of `--json` hold; returns the exit status.

    Raises:
        typer.BadParameter: One of them is no report, or the page has no place for it.
    """
    reports = [_read(file) for file in files]
    if problem := find_problem(options):
        raise typer.BadParameter(problem)
    return model_reports(reports, options)


def find_problem(options: ModelOptions) -> str | None:
    """Before anything is measured, which takes minutes."""
    if options.markdown is not None and (problem := page_problem(options.markdown)):
        return f"--markdown {options.markdown}: {problem}"
    return None


def model_reports(reports: Sequence[Report], options: ModelOptions) -> int:
    """Fits, prints and writes; returns the exit status, which says nothing about how well the check went."""
    try:
        study = Study.of(reports, options.cluster)
        if options.markdown is not None:
            put_into(options.markdown, study)
    except CannotFitError as exc:
        return _failed(f"--model: {exc}")
    except (OSError, ValueError) as exc:
        return _failed(f"--markdown {options.markdown}: {exc}")
    return print_to_end(lambda console: print_study(console, study))


def _failed(text: str) -> int:
    typer.echo(f"Error: {text}", err=True)
    return FAILED


def _read(file: Path) -> Report:
    try:
        return Report.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise typer.BadParameter(f"--from {file}: {exc}") from exc
