"""The fastest way for each payload, and how it compares with torch's."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from gather_bench.bench.only_codecs.quantities import seconds_text
from gather_bench.bench.results import BASELINE, Report
from gather_bench.report.markup import Child, table
from gather_bench.report.section import note, section
from gather_bench.report.views import Measured, by_payload_and_ranks, is_ours, quartiles_text, times_faster_text

_HEADERS = ("payload", "fastest way", "ranks", "median", "times faster", "quartiles")


def summary(report: Report) -> Element | None:
    """A line per payload and world size on which a Gatherer was measured."""
    groups = by_payload_and_ranks(report).values()
    fastest = [min(ours, key=_median) for group in groups if (ours := [each for each in group if is_ours(each.row)])]
    if not fastest:
        return None
    return section(
        "Fastest ways",
        note(
            f"Times faster: the median of {BASELINE} over that of the way. Ways whose quartiles overlap, in the table "
            "of all rows, do not differ."
        ),
        table(_HEADERS, map(_line, fastest), texts=2),
    )


def _median(each: Measured) -> float:
    return each.seconds.median


def _line(each: Measured) -> Sequence[Child]:
    row, seconds = each.row, each.seconds
    return (
        row.payload,
        row.label,
        str(row.world_size),
        seconds_text(seconds.median),
        times_faster_text(row),
        quartiles_text(seconds),
    )
