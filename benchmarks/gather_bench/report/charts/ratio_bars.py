"""Horizontal bars of ratios, in groups, on one logarithmic axis: what is faster is to the right of 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from gather_bench.report.charts.axes import LogAxis
from gather_bench.report.markup import element

WIDTH = 520
_LEFT, _RIGHT = 188, 58
_HEADING_HEIGHT = 30
_ROW_HEIGHT = 18
_BAR_HEIGHT = 13
_AXIS_HEIGHT = 30


@dataclass(frozen=True)
class RatioBar:
    """One ratio."""

    label: str
    value: float
    """Above 0."""
    color: str
    """A class of style.css that has a hue."""
    hint: str
    """What a pointer that rests on it is told."""


@dataclass(frozen=True)
class BarGroup:
    """What is compared with the same thing."""

    title: str
    bars: Sequence[RatioBar]

    @property
    def height(self) -> int:
        """In pixels, with its title."""
        return _HEADING_HEIGHT + len(self.bars) * _ROW_HEIGHT


def ratio_bars(groups: Sequence[BarGroup]) -> tuple[Element, int]:
    """Draws at least one bar; returns the drawing, `WIDTH` wide, and its height."""
    values = [bar.value for group in groups for bar in group.bars]
    axis = LogAxis.around([1.0, *values], _LEFT, WIDTH - _RIGHT)
    bottom = sum(group.height for group in groups)
    drawn = element("g", *(_tick(axis, value, bottom) for value in axis.decimal_ticks()))
    y = 0
    for group in groups:
        drawn.append(_group(group, axis, y))
        y += group.height
    return drawn, bottom + _AXIS_HEIGHT


def times_text(value: float) -> str:
    """Writes a ratio with 2 digits, such as "0.39 x", "4.1 x" or "68 x"."""
    return f"{value:.0f} x" if value >= 9.95 else f"{value:.1f} x" if value >= 0.995 else f"{value:.2g} x"


def _tick(axis: LogAxis, value: float, bottom: int) -> Element:
    x = axis.at(value)
    line = element("line", x1=x, x2=x, y1=_HEADING_HEIGHT / 2, y2=bottom + 4, class_="grid")
    return element("g", line, element("text", f"{value:g}", x=x, y=bottom + 20, text_anchor="middle"))


def _group(group: BarGroup, axis: LogAxis, y: int) -> Element:
    title = element("text", group.title, x=0, y=y + _HEADING_HEIGHT - 9, font_weight="bold")
    first = y + _HEADING_HEIGHT
    bars = (_bar(bar, axis, first + number * _ROW_HEIGHT) for number, bar in enumerate(group.bars))
    return element("g", title, *bars)


def _bar(bar: RatioBar, axis: LogAxis, y: int) -> Element:
    start, end = sorted((axis.at(1.0), axis.at(bar.value)))
    drawn = element(
        "rect",
        element("title", bar.hint),
        x=start,
        y=y + (_ROW_HEIGHT - _BAR_HEIGHT) / 2,
        width=end - start,
        height=_BAR_HEIGHT,
        class_=f"bar {bar.color}",
    )
    label = element("text", bar.label, x=_LEFT - 8, y=y + 14, text_anchor="end")
    return element("g", label, drawn, element("text", times_text(bar.value), x=end + 6, y=y + 14))
