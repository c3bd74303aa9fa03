"""Time as lines, over the size of the payload and over the world size."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

from gather_bench.bench.only_codecs.quantities import nbytes_text, seconds_text
from gather_bench.bench.results import WITHOUT_COLLECTIVE, Report, Row
from gather_bench.bench.wording import count
from gather_bench.report.charts.line_chart import Axis, Point, Series, line_chart
from gather_bench.report.charts.marks import Look, legend, looks
from gather_bench.report.section import figure, figures, note, section
from gather_bench.report.views import Measured, grouped, is_ours, measured, where

_MAX_WAYS = 7
"""In one drawing, peers not counted; with more each codec has a drawing of its own."""
_SIZE = Axis("payload per rank as a plain pickle", lambda value: _short(nbytes_text(round(value))))
_TIME = Axis("time of a call", lambda value: _short(seconds_text(value)))


_Name = Callable[[Row], str]
"""Tells one line of a drawing from another."""


def latency(report: Report) -> Element | None:
    """Time against size, a drawing per world size."""
    sized = [each for each in _drawn(report) if each.row.payload_nbytes]
    if not sized:
        return None
    groups = grouped((count(each.row.world_size, "rank"), each) for each in sized)
    return section("Time against size", _how_to_read(sized), *_drawings(_SIZE, groups))


def cost_of_ranks(report: Report) -> Element | None:
    """Time against the world size, a drawing per payload, where several world sizes were measured."""
    rows = _drawn(report)
    world_sizes = {each.row.world_size for each in rows}
    if len(world_sizes) < 2:
        return None
    across = Axis("ranks", lambda value: f"{value:.0f}", sorted(world_sizes))
    groups = grouped((each.row.payload, each) for each in rows)
    return section("Time against the number of ranks", _oversubscribed(report), *_drawings(across, groups))


def _drawn(report: Report) -> list[Measured]:
    """Without what exchanges nothing, which is so much faster that the others would lie on each other."""
    return [each for each in measured(report) if each.row.way not in WITHOUT_COLLECTIVE]


def _oversubscribed(report: Report) -> Element | None:
    environment = report.environment
    if environment.hosts > 1 or max(environment.world_sizes) <= environment.cpu_count:
        return None
    return note(f"More ranks than {count(environment.cpu_count, 'CPU')} take turns on them, which costs time too.")


def _how_to_read(rows: Sequence[Measured]) -> Element:
    sizes = {each.row.payload: each.row.payload_nbytes or 0 for each in rows}
    named = ", ".join(
        f"{name} {nbytes_text(nbytes)}" for name, nbytes in sorted(sizes.items(), key=lambda item: item[1])
    )
    return note(
        "Points are medians, bands lie between the quartiles; both axes are logarithmic. What exchanges nothing is in "
        f"the table of all rows alone. Payloads: {named}."
    )


def _drawings(across: Axis, groups: Mapping[str, Sequence[Measured]]) -> tuple[Element, Element]:
    """What the lines are, and a drawing per group; where there are too many lines, one per group and codec."""
    rows = [each for group in groups.values() for each in group]
    name = _label if len({each.row.label for each in rows if is_ours(each.row)}) <= _MAX_WAYS else _label_without_codec
    look_of = _looks(rows, name)
    drawn = [
        figure(heading, _chart(heading, across, some, look_of, name))
        for title, group in groups.items()
        for heading, some in ([(title, group)] if name is _label else _by_codec(title, group))
    ]
    return legend(look_of), figures(drawn)


def _label(row: Row) -> str:
    return row.label


def _label_without_codec(row: Row) -> str:
    return row.label.removeprefix(f"{row.codec}, ")


def _looks(rows: Iterable[Measured], name: _Name) -> dict[str, Look]:
    names = {name(each.row): is_ours(each.row) for each in rows}
    return looks((each for each, ours in names.items() if ours), (each for each, ours in names.items() if not ours))


def _by_codec(title: str, rows: Sequence[Measured]) -> list[tuple[str, Sequence[Measured]]]:
    """Each with the peers."""
    peers = [each for each in rows if not is_ours(each.row)]
    ours = grouped((each.row.codec, each) for each in rows if is_ours(each.row))
    return [(f"{title}, {codec}", [*group, *peers]) for codec, group in ours.items()]


def _chart(title: str, across: Axis, rows: Sequence[Measured], look_of: Mapping[str, Look], name: _Name) -> Element:
    lines = grouped((name(each.row), each) for each in rows)
    x_of = _nbytes if across is _SIZE else _world_size
    series = [Series(each, look_of[each], _points(some, x_of)) for each, some in lines.items()]
    return line_chart(title, across, _TIME, sorted(series, key=lambda each: not each.look.is_peer))


def _points(rows: Iterable[Measured], x_of: Callable[[Row], int]) -> Sequence[Point]:
    points = [
        Point(
            x_of(each.row),
            each.seconds.median,
            each.seconds.lower_quartile,
            each.seconds.upper_quartile,
            f"{each.row.label}: {seconds_text(each.seconds.median)} for {where(each.row.payload, each.row.world_size)}",
        )
        for each in rows
    ]
    return sorted(points, key=lambda point: point.x)


def _short(text: str) -> str:
    """Without the zeros behind the point, of which a tick has no need."""
    return re.sub(r"\.0+ ", " ", text)


def _nbytes(row: Row) -> int:
    return row.payload_nbytes or 0


def _world_size(row: Row) -> int:
    return row.world_size
