"""What has changed since an older report."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from gather_bench.bench.only_codecs.quantities import seconds_text
from gather_bench.bench.results import Report
from gather_bench.report.compare.changes import Change, compare
from gather_bench.report.compare.wording import change_text, conclusion, label, margin_text, remarks
from gather_bench.report.markup import Child, element, table
from gather_bench.report.section import note, section

_HEADERS = ("payload", "way", "verdict", "ranks", "then", "now", "change", "noise")


def compared_with(old: Report, report: Report) -> Element:
    """Every row that both have; make a section of it with `functools.partial`."""
    comparison = compare(old, report)
    return section(
        f"Compared with {old.environment.date}",
        element("p", conclusion(comparison)),
        table(_HEADERS, map(_line, comparison.changes), texts=3),
        *map(note, remarks(comparison)),
    )


def _line(change: Change) -> Sequence[Child]:
    return (
        change.new.payload,
        label(change),
        element("strong", change.verdict) if change.verdict in ("slower", "faster") else change.verdict,
        str(change.new.world_size),
        seconds_text(change.old_s),
        seconds_text(change.new_s),
        change_text(change),
        margin_text(change),
    )
