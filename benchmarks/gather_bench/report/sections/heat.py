"""Codecs by transports, one table per payload, coloured by how they compare."""

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

from gather_bench.bench.only_codecs.quantities import seconds_text
from gather_bench.bench.results import BASELINE, Report, Row
from gather_bench.report.markup import element
from gather_bench.report.section import figure, figures, note, section
from gather_bench.report.views import is_ours, where

_FULL_COLOR_AT = 8.0
"""So many times faster or slower has the full colour."""
_MAX_OPACITY = 0.6
"""So that what is written on it can be read."""


def heat(report: Report) -> Element | None:
    """A table per payload and world size; left out where there is but one codec and one transport."""
    rows = [row for row in report.rows if is_ours(row)]
    if len({(row.codec, row.transport) for row in rows}) < 2:
        return None
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.payload, row.world_size), []).append(row)
    maps = [figure(where(*key), _map(group)) for key, group in groups.items()]
    return section("Codec by transport", note(_reading(rows)), figures(maps))


def _reading(rows: Iterable[Row]) -> str:
    if any(row.times_faster for row in rows):
        return f"Times faster than {BASELINE}, above the median time. Blue is faster, orange slower."
    return "Median times; the bluer, the closer to the fastest of the table."


def _map(rows: Sequence[Row]) -> Element:
    transports = list(dict.fromkeys(row.transport or "" for row in rows))
    codecs = list(dict.fromkeys(row.codec or "" for row in rows))
    of_pair = {(row.codec, row.transport): row for row in rows}
    fastest = min((row.seconds.median for row in rows if row.seconds), default=0.0)
    head = element("tr", element("th"), *(element("th", name, scope="col") for name in transports))
    lines = (
        element("tr", element("th", codec, scope="row"), *(_cell(of_pair, codec, name, fastest) for name in transports))
        for codec in codecs
    )
    whole = element("table", element("thead", head), element("tbody", *lines), class_="heat")
    return element("div", whole, class_="scroll", tabindex=0)


def _cell(of_pair: Mapping[tuple[str | None, str | None], Row], codec: str, transport: str, fastest: float) -> Element:
    row = of_pair.get((codec, transport))
    if row is None or row.seconds is None:
        return element("td", "-" if row is None else row.status, class_="missing")
    time = seconds_text(row.seconds.median)
    if row.times_faster is None:
        closeness = max(0.0, 1 - math.log(row.seconds.median / fastest) / math.log(_FULL_COLOR_AT))
        return element("td", time, style=_background(closeness))
    ratio = math.log(row.times_faster) / math.log(_FULL_COLOR_AT)
    return element("td", f"{row.times_faster:.2f}", element("small", time), style=_background(ratio))


def _background(strength: float) -> str:
    """Of -1, much slower, to 1, much faster."""
    hue = "faster" if strength > 0 else "slower"
    return f"background: rgba(var(--{hue}), {_MAX_OPACITY * min(1.0, abs(strength)):.2f})"
