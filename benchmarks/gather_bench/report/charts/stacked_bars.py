"""Horizontal bars of several parts each, with their names above them and their sums behind them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from xml.etree.ElementTree import Element

from gather_bench.report.markup import element

_WIDTH = 480
_BAR_HEIGHT = 16
_ROW_HEIGHT = 48
_SUM_WIDTH = 70


@dataclass(frozen=True)
class Bar:
    """One bar."""

    label: str
    parts: Sequence[float]
    """As many as there are names of parts, none below 0."""


def stacked_bars(title: str, names: Sequence[str], bars: Sequence[Bar], text: Callable[[float], str]) -> Element:
    """Draws bars on one scale; `text` writes a value with its unit."""
    largest = max(sum(bar.parts) for bar in bars)
    scale = (_WIDTH - _SUM_WIDTH) / largest if largest else 0.0
    drawn = (_bar(bar, names, number * _ROW_HEIGHT, scale, text) for number, bar in enumerate(bars))
    height = len(bars) * _ROW_HEIGHT
    return element("svg", element("title", title), *drawn, viewBox=f"0 0 {_WIDTH} {height}", role="img")


def parts_legend(names: Sequence[str]) -> Element:
    """A list of what the colours mean."""
    return element("ul", *(_entry(number, name) for number, name in enumerate(names)), class_="legend")


def _bar(bar: Bar, names: Sequence[str], y: float, scale: float, text: Callable[[float], str]) -> Element:
    ends = [scale * end for end in accumulate(bar.parts)]
    starts = [0.0, *ends]
    parts = (
        element(
            "rect",
            element("title", f"{bar.label}: {name} {text(part)}"),
            x=start,
            y=y + 18,
            width=scale * part,
            height=_BAR_HEIGHT,
            class_=f"part{number}",
        )
        for number, (name, part, start) in enumerate(zip(names, bar.parts, starts, strict=False))
    )
    total = element("text", text(sum(bar.parts)), x=ends[-1] + 6, y=y + 31)
    return element("g", element("text", bar.label, x=0, y=y + 12), *parts, total)


def _entry(number: int, name: str) -> Element:
    square = element("rect", width=14, height=14, y=1, class_=f"part{number}")
    drawing = element("svg", square, viewBox="0 0 14 16", width=14, height=16, aria_hidden="true")
    return element("li", drawing, element("span", name))
