"""Lines over two logarithmic axes, with a band or a bar of what each point was measured as."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from gather_bench.report.charts.axes import LogAxis
from gather_bench.report.charts.marks import Look, mark
from gather_bench.report.markup import element

_WIDTH, _HEIGHT = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 12, 12, 50


@dataclass(frozen=True)
class Point:
    """One measurement, or a value that a model gives."""

    x: float
    y: float
    lower: float
    """Of the quartiles of y; y itself where there are none."""
    upper: float
    hint: str
    """What a pointer that rests on it is told."""


@dataclass(frozen=True)
class Series:
    """What belongs together, by growing x."""

    label: str
    look: Look
    points: Sequence[Point]
    lined: bool = True
    """Whether a line joins the points."""
    marked: bool = True
    """Whether the points themselves are shown."""


@dataclass(frozen=True)
class Axis:
    """What an axis says."""

    title: str
    """With the unit."""
    text: Callable[[float], str]
    """Writes the value of a tick."""
    ticks: Sequence[float] = ()
    """Where they are wanted; none: where there is room for them."""
    binary: bool = False
    """Ticks at powers of 2 instead of decimal ones."""


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Element:
    """Draws the series; there is at least one point, and all values are above 0."""
    points = [point for each in series for point in each.points]
    across = LogAxis.around((point.x for point in points), _LEFT, _WIDTH - _RIGHT)
    up = LogAxis.around((value for p in points for value in (p.lower, p.y, p.upper)), _HEIGHT - _BOTTOM, _TOP)
    return element(
        "svg",
        element("title", title),
        *_grid(across, x, up, y),
        *(_band(each, across, up) for each in series if each.lined),
        *(_line(each, across, up) for each in series if each.lined),
        *(mark(each.look, across.at(p.x), up.at(p.y), p.hint) for each in series if each.marked for p in each.points),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
    )


def _grid(across: LogAxis, x: Axis, up: LogAxis, y: Axis) -> list[Element]:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        *(_vertical(across.at(tick), x.text(tick)) for tick in _ticks(across, x)),
        *(_horizontal(up.at(tick), y.text(tick)) for tick in _ticks(up, y)),
        _text(x.title, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "middle"),
        element("text", y.title, x=14, y=middle, text_anchor="middle", transform=f"rotate(-90 14 {middle:.0f})"),
    ]


def _ticks(axis: LogAxis, said: Axis) -> Sequence[float]:
    if said.ticks:
        return axis.with_room_between(said.ticks)
    return axis.binary_ticks() if said.binary else axis.decimal_ticks()


def _vertical(x: float, text: str) -> Element:
    line = element("line", x1=x, y1=_TOP, x2=x, y2=_HEIGHT - _BOTTOM, class_="grid")
    return element("g", line, _text(text, x, _HEIGHT - _BOTTOM + 16, "middle"))


def _horizontal(y: float, text: str) -> Element:
    line = element("line", x1=_LEFT, y1=y, x2=_WIDTH - _RIGHT, y2=y, class_="grid")
    return element("g", line, _text(text, _LEFT - 6, y + 4, "end"))


def _text(text: str, x: float, y: float, anchor: str) -> Element:
    return element("text", text, x=x, y=y, text_anchor=anchor)


def _band(series: Series, across: LogAxis, up: LogAxis) -> Element:
    """Between the quartiles; a single point has a bar instead."""
    if len(series.points) == 1:
        point = series.points[0]
        x = across.at(point.x)
        ends = {"y1": up.at(point.lower), "y2": up.at(point.upper)}
        return element("line", x1=x, x2=x, class_=f"line {series.look.color}", **ends)
    there = [f"{across.at(p.x):.1f},{up.at(p.upper):.1f}" for p in series.points]
    back = [f"{across.at(p.x):.1f},{up.at(p.lower):.1f}" for p in reversed(series.points)]
    return element("polygon", points=" ".join(there + back), class_=f"band {series.look.color}")


def _line(series: Series, across: LogAxis, up: LogAxis) -> Element:
    points = " ".join(f"{across.at(p.x):.1f},{up.at(p.y):.1f}" for p in series.points)
    return element("polyline", points=points, class_=f"line {series.look.color}")
