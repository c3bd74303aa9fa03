"""Where the time of a call goes."""

from collections.abc import Sequence
from dataclasses import astuple
from xml.etree.ElementTree import Element

from gather_bench.bench.only_codecs.quantities import seconds_text
from gather_bench.bench.results import Report
from gather_bench.report.charts.stacked_bars import Bar, parts_legend, stacked_bars
from gather_bench.report.section import figure, figures, note, section
from gather_bench.report.views import Measured, by_payload_and_ranks, where

_PARTS = ("encode", "wait", "transfer", "decode")


def split(report: Report) -> Element | None:
    """Bars per payload and world size, one for each way of which the parts were measured."""
    groups = {key: _bars(group) for key, group in by_payload_and_ranks(report).items()}
    drawn = [
        figure(where(*key), stacked_bars(f"time split, {where(*key)}", _PARTS, bars, seconds_text))
        for key, bars in groups.items()
        if bars
    ]
    return (
        section("Where the time goes", note(_reading(report)), parts_legend(_PARTS), figures(drawn)) if drawn else None
    )


def _bars(group: Sequence[Measured]) -> Sequence[Bar]:
    return [Bar(each.row.label, [part or 0.0 for part in astuple(each.row.split)]) for each in group if each.row.split]


def _reading(report: Report) -> str:
    text = (
        "Measured apart from the times above, so the sums differ from the medians. Wait: until the last rank is there."
    )
    if any(row.split and row.split.wait is None for row in report.rows):
        text += " Between hosts it cannot be told from transfer, and is a part of it."
    return text
