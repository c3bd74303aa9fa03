"""The cost model: what it is fitted to, how far it is off, and what it says of many ranks."""

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from gather_bench.bench.results import Report
from gather_bench.model.drawing import Titled, fitted_drawings, predicted_drawings, with_legend
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
from gather_bench.report.markup import element, table
from gather_bench.report.section import figure, figures, note, section


def scaling(study: Study, report: Report) -> Element:
    """Stands at the end of what was measured; says of every number whether it is modelled."""
    return section(
        "Many ranks, modelled",
        note(f"{assumptions_text(study.cluster)}. Nothing in this part but the points of its drawings was measured."),
        _list(conclusions(study)),
        figures(_drawn(predicted_drawings(study))),
        *(part for sheet in prediction_sheets(study) for part in _sheet(sheet)),
        element("h3", "How far the model is off"),
        _list(_checks(study)),
        figures(_drawn(fitted_drawings(study))),
        *(part for fit in study.fits for part in (*_sheet(costs_sheet(fit)), *_sheet(residuals_sheet(fit)))),
    )


def _checks(study: Study) -> Iterator[str]:
    for fit in study.fits:
        yield from map(verdict_text, fit.verdicts())
        if text := unchecked_text(fit):
            yield text


def _list(texts: Iterator[str]) -> Element:
    return element("ul", *(element("li", text) for text in texts))


def _drawn(drawings: Sequence[Titled]) -> list[Element]:
    return [figure(each[0], with_legend(each)) for each in drawings]


def _sheet(sheet: Sheet) -> tuple[Element, Element]:
    return element("h3", sheet.title), table(sheet.headers, sheet.rows, texts=sheet.texts)
