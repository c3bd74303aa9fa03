"""A report as one page of HTML: nothing is loaded from elsewhere, and no script is needed to read it."""

from collections.abc import Sequence
from importlib.resources import files

from gather_bench.bench.results import Report
from gather_bench.report.markup import element, to_document
from gather_bench.report.section import Section
from gather_bench.report.sections.all_rows import all_rows, not_measured
from gather_bench.report.sections.head import head
from gather_bench.report.sections.heat import heat
from gather_bench.report.sections.lines import cost_of_ranks, latency
from gather_bench.report.sections.split import split
from gather_bench.report.sections.summary import summary

SECTIONS: Sequence[Section] = (head, summary, latency, heat, cost_of_ranks, split, all_rows, not_measured)
"""In the order of the page."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser neither loads nor runs anything, whatever a payload or an error may be called."""


def to_html(report: Report, sections: Sequence[Section] = SECTIONS) -> str:
    """Writes the page; the same report gives the same text."""
    return to_document(
        element(
            "html",
            element(
                "head",
                element("meta", charset="utf-8"),
                element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
                element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                element("title", f"gather bench, {report.environment.date}"),
                element("style", (files(__package__) / "style.css").read_text(encoding="utf-8")),
            ),
            element("body", *(make(report) for make in sections)),
            lang="en",
        )
    )
