"""Drawings of the model: measured points and modelled lines against ranks, and what it says of many ranks."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import groupby
from typing import Literal
from xml.etree.ElementTree import Element, tostring

from gather_bench.bench.only_codecs.quantities import nbytes_text, seconds_text
from gather_bench.model.fit import Fit, Residual
from gather_bench.model.points import Way
from gather_bench.model.predict import Prediction
from gather_bench.model.sheets import MODELLED, name_of_column
from gather_bench.model.study import Study
from gather_bench.report.charts.line_chart import Axis, Point, Series, line_chart
from gather_bench.report.charts.marks import Look, looks, mark
from gather_bench.report.markup import element

_RANKS = Axis("ranks", lambda value: f"{value:,.0f}", binary=True)
_TIME = Axis("time of a call", lambda value: seconds_text(value).replace(".00 ", " ").replace(".0 ", " "))
_FITTED, _CHECKED = "circle", "diamond"
_WIDTH, _HEIGHT = 480, 320
_HEADING, _GAP, _ENTRY_LEFT, _ENTRY_WIDTH, _ENTRY_HEIGHT = 26, 24, 20, 160, 20
_COLUMNS = 2
_KEYS_PER_LINE = 3

Entry = tuple[str, Look, Literal["line", "point", "both"]]
"""A label, its look, and which of it is shown."""
Titled = tuple[str, Element, Sequence[Entry]]
"""A heading, a drawing, and its legend."""


def fitted_drawings(study: Study) -> list[Titled]:
    """One for each way: lines as the model has it, points as measured."""
    drawn = []
    for fit in study.fits:
        for way in dict.fromkeys(each.point.way for each in fit.residuals):
            drawn.append(_fitted(way, [each for each in fit.residuals if each.point.way == way], fit))
    return drawn


def _fitted(way: Way, residuals: Sequence[Residual], fit: Fit) -> Titled:
    sizes = sorted({each.point.job.nbytes for each in residuals})
    series: list[Series] = []
    legend: list[Entry] = []
    for number, nbytes in enumerate(sizes):
        some = sorted(
            (each for each in residuals if each.point.job.nbytes == nbytes), key=lambda each: each.point.job.world_size
        )
        color = f"color{number}"
        series.append(Series(nbytes_text(nbytes), Look(color, _FITTED), _modelled_points(some), marked=False))
        series += _measured_series(color, some)
        legend.append((f"{nbytes_text(nbytes)}, {MODELLED}", Look(color, _FITTED), "line"))
    legend += [
        ("measured, fitted", Look("peer", _FITTED), "point"),
        ("measured, checked", Look("peer", _CHECKED), "point"),
    ]
    return f"{way}", line_chart(f"{way}", _RANKS, _TIME, series), legend


def _modelled_points(residuals: Sequence[Residual]) -> list[Point]:
    return [_point(each.point.job.world_size, each.modelled, MODELLED) for each in residuals]


def _measured_series(color: str, residuals: Sequence[Residual]) -> Iterator[Series]:
    for shape, is_check in ((_FITTED, False), (_CHECKED, True)):
        points = [
            _point(each.point.job.world_size, each.point.seconds, "measured")
            for each in residuals
            if each.is_check == is_check
        ]
        if points:
            yield Series("measured", Look(color, shape), points, lined=False)


def _point(world_size: int, seconds: float, kind: str) -> Point:
    return Point(world_size, seconds, seconds, seconds, f"{world_size:,} ranks: {seconds_text(seconds)}, {kind}")


def predicted_drawings(study: Study) -> list[Titled]:
    """One for each codec and size; all of it is modelled."""
    return [
        _predicted(f"{codec}, {nbytes_text(nbytes)} per rank: {MODELLED}", list(group))
        for (codec, nbytes), group in groupby(study.predictions, lambda each: (each.codec, each.nbytes))
    ]


def _predicted(title: str, predictions: Sequence[Prediction]) -> Titled:
    ways = dict.fromkeys(way for each in predictions for way in each.seconds)
    look_of = looks(map(name_of_column, ways), ())
    series = [
        Series(
            str(way),
            look_of[name_of_column(way)],
            [_point(each.world_size, each.seconds[way], MODELLED) for each in predictions if way in each.seconds],
        )
        for way in ways
    ]
    return title, line_chart(title, _RANKS, _TIME, series), [(name, look, "both") for name, look in look_of.items()]


def with_legend(drawn: Titled) -> Element:
    """A drawing with its legend below it, as one."""
    _, chart, entries = drawn
    lines = -(-len(entries) // _KEYS_PER_LINE)
    keys = (
        _key(
            entry,
            _ENTRY_LEFT + number % _KEYS_PER_LINE * _ENTRY_WIDTH,
            _HEIGHT + number // _KEYS_PER_LINE * _ENTRY_HEIGHT,
        )
        for number, entry in enumerate(entries)
    )
    height = _HEIGHT + lines * _ENTRY_HEIGHT
    return element("svg", *chart, *keys, viewBox=f"0 0 {_WIDTH} {height}", role="img")


def _key(entry: Entry, x: float, y: float) -> Element:
    label, look, shown = entry
    line = element("line", x1=x, y1=y + 8, x2=x + 24, y2=y + 8, class_=f"line {look.color}")
    return element(
        "g",
        line if shown != "point" else None,
        mark(look, x + 12, y + 8, label) if shown != "line" else None,
        element("text", label, x=x + 28, y=y + 12),
    )


def to_svg(study: Study) -> str:
    """All drawings as one file, which is the same for the same study; it is light or dark as the reader wants."""
    drawings = [*fitted_drawings(study), *predicted_drawings(study)]
    cell = _HEIGHT + _HEADING + 3 * _ENTRY_HEIGHT
    rows = -(-len(drawings) // _COLUMNS)
    width, height = _COLUMNS * (_WIDTH + _GAP), rows * (cell + _GAP)
    style = (files("gather_bench.report") / "style.css").read_text(encoding="utf-8")
    root = element(
        "svg",
        element("title", "Time of a gather against the number of ranks"),
        element("style", style),
        element("rect", width=width, height=height, style="fill: var(--paper)"),
        *(
            _cell(each, number % _COLUMNS * (_WIDTH + _GAP), number // _COLUMNS * (cell + _GAP), cell)
            for number, each in enumerate(drawings)
        ),
        viewBox=f"0 0 {width} {height}",
        xmlns="http://www.w3.org/2000/svg",
        font_family="system-ui, sans-serif",
    )
    return tostring(root, encoding="unicode") + "\n"


def _cell(drawn: Titled, x: float, y: float, height: float) -> Element:
    heading = element("text", drawn[0], x=_GAP, y=18, font_weight="bold")
    chart = element(
        "svg", *with_legend(drawn), x=0, y=_HEADING, width=_WIDTH, height=height - _HEADING, overflow="visible"
    )
    return element("g", heading, chart, transform=f"translate({x:.0f} {y:.0f})")
