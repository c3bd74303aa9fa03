"""`gather bench --only-codecs`, from checked options to table, files and exit status."""

import sys
from pathlib import Path

import typer

from gather_bench.bench.only_codecs.results import CodecOptions, CodecReport
from gather_bench.bench.publishing import FAILED, File, publish


def run_only_codecs(options: CodecOptions, json: Path | None, markdown: Path | None) -> int:
    """Measures in this process; returns the exit status.

    Args:
        options: What to measure.
        json: Where to write the report too, if anywhere.
        markdown: The page to put the tables into, if any.

    Raises:
        typer.BadParameter: An option is wrong; nothing was measured.
    """
    from gather_bench.bench.only_codecs.measure import measure_codecs
    from gather_bench.bench.only_codecs.table import print_codecs

    if problem := _find_problem(options, json, markdown):
        raise typer.BadParameter(problem)
    report = measure_codecs(options, _tell)
    files = [File("--json", json, CodecReport.to_json)] if json is not None else []
    status = publish(report, files, print_codecs)
    if markdown is not None and report.has_measured:
        from gather_bench.bench.only_codecs.markdown import put_into

        try:
            put_into(markdown, report)
        except (OSError, ValueError) as exc:
            typer.echo(f"Error: --markdown {markdown}: {exc}", err=True)
            return FAILED
    return status


def _find_problem(options: CodecOptions, json: Path | None, markdown: Path | None) -> str | None:
    """Before anything is measured, which takes minutes."""
    from gather_bench.bench.checks import find_problem
    from gather_bench.bench.only_codecs.markdown import PART
    from gather_bench.bench.options import Options

    checked = Options(codecs=options.codecs, transports=(), payloads=options.payloads)
    files = {option: path for option, path in (("--json", json), ("--markdown", markdown)) if path is not None}
    if problem := find_problem(checked, files):
        return problem
    if markdown is not None and (problem := PART.problem(markdown)):
        return f"--markdown {markdown}: {problem}"
    return None


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
