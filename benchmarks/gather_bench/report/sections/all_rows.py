"""Every row that was measured, and of every other one why not."""

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from gather_bench.bench.only_codecs.quantities import nbytes_text, seconds_text
from gather_bench.bench.results import Report, Row
from gather_bench.report.markup import Child, element, table
from gather_bench.report.section import note, section
from gather_bench.report.views import Measured, measured, quartiles_text, times_faster_text

_HEADERS = (
    "payload", "way", "ranks", "encoded", "received", "exchanges", "median", "quartiles", "times faster", "peak memory",
)  # fmt: skip


def all_rows(report: Report) -> Element | None:
    """The numbers behind the drawings."""
    rows = measured(report)
    if not rows:
        return None
    reading = (
        "Encoded: what a rank hands over per call, on the rank with the most. Received: what all ranks hand over "
        "together. Peak memory: how much more is resident at the peak of a call than before."
    )
    return section("All rows", note(reading), table(_HEADERS, map(_line, rows), texts=2))


def not_measured(report: Report) -> Element | None:
    """What was refused, unavailable, failed or wrong; each reason once."""
    labels: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        if row.status != "measured":
            labels.setdefault((row.status, row.reason or ""), []).append(_name(row))
    if not labels:
        return None
    lines = ((status, _items(names), reason) for (status, reason), names in labels.items())
    return section("Not measured", table(("status", "what", "why"), lines, texts=3))


def _line(each: Measured) -> Sequence[Child]:
    row, seconds = each.row, each.seconds
    return (
        row.payload,
        row.label,
        str(row.world_size),
        _nbytes(row.encoded_nbytes),
        _nbytes(row.received_nbytes),
        str(row.gather_rounds or "-"),
        seconds_text(seconds.median),
        quartiles_text(seconds),
        times_faster_text(row),
        _nbytes(row.peak_nbytes),
    )


def _nbytes(nbytes: int | None) -> str:
    return "-" if nbytes is None else nbytes_text(nbytes)


def _name(row: Row) -> str:
    """A way that cannot be used here at all is named once, and not with every payload."""
    return row.label if row.status == "unavailable" else f"{row.label}: {row.payload}"


def _items(names: Iterable[str]) -> Element:
    return element("div", *(element("div", name) for name in dict.fromkeys(names)))
