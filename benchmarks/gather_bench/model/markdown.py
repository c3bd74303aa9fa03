"""The model as Markdown, to stand between two markers of a page, with its drawing beside the page."""

from collections.abc import Iterator
from pathlib import Path

from gather_bench.bench.results import Environment
from gather_bench.bench.wording import count, listing
from gather_bench.made_part import MadePart
from gather_bench.model.drawing import to_svg
from gather_bench.model.sheets import (
    Sheet,
    assumptions_text,
    conclusions,
    costs_sheet,
    prediction_sheets,
    residuals_sheet,
    unchecked_text,
    verdict_text,
)
from gather_bench.model.study import Study

PART = MadePart("<!-- made by gather bench --model -->", "<!-- end of what was made -->")


def put_into(page: Path, study: Study) -> None:
    """Replaces what was made in the page, and the drawing beside it; raises as `MadePart.put`."""
    drawing = page.with_suffix(".svg")
    PART.put(page, to_markdown(study, drawing.name))
    drawing.write_text(to_svg(study), encoding="utf-8")


def to_markdown(study: Study, drawing: str) -> str:
    """Writes what was measured where, what is modelled, and how far that is off."""
    return "\n".join(_parts(study, drawing))


def _parts(study: Study, drawing: str) -> Iterator[str]:
    yield f"### Many ranks\n\n{assumptions_text(study.cluster)}.\n"
    for sheet in prediction_sheets(study):
        yield _table(sheet)
    yield "".join(f"- {text}.\n" for text in conclusions(study))
    yield f"### Measured and modelled\n\n{_where(study)}\n"
    yield "".join(f"- {verdict_text(verdict)}.\n" for fit in study.fits for verdict in fit.verdicts())
    yield from (f"- {text}.\n" for text in map(unchecked_text, study.fits) if text)
    yield f"![Time against ranks: points are measured, lines are modelled]({drawing})\n"
    for fit in study.fits:
        yield _table(costs_sheet(fit))
        yield _table(residuals_sheet(fit))


def _where(study: Study) -> str:
    where = study.environment
    medians = "" if study.num_reports == 1 else f", medians of {count(study.num_reports, 'report')}"
    return (
        f"{where.cpu_model}, {count(where.cpu_count, 'CPU')}{_threads(where)}, {where.platform}; "
        f"torch {where.torch}, Python {where.python}, {where.date}; {listing(where.world_sizes)} ranks{medians}."
    )


def _threads(where: Environment) -> str:
    threads = where.threads_per_core
    return "" if threads is None else f" ({count(threads, 'thread')} per core)"


def _table(sheet: Sheet) -> str:
    aligned = ["---" if number < sheet.texts else "--:" for number in range(len(sheet.headers))]
    lines = [sheet.headers, aligned, *sheet.rows]
    return f"**{sheet.title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
