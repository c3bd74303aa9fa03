"""What a section of the page is: a function of the report, which returns None where it has nothing to say."""

from collections.abc import Callable
from xml.etree.ElementTree import Element

from gather_bench.bench.results import Report
from gather_bench.report.markup import Child, element

Section = Callable[[Report], Element | None]


def section(title: str, *children: Child) -> Element:
    """A section with its heading."""
    return element("section", element("h2", title), *children)


def note(text: str) -> Element:
    """A paragraph that says how to read what stands beside it."""
    return element("p", text, class_="note")


def figure(title: str, drawing: Element, caption: str | None = None) -> Element:
    """A drawing with its heading, and perhaps a line below it."""
    below = element("figcaption", caption) if caption else None
    return element("figure", element("h3", title), drawing, below)


def figures(drawn: list[Element]) -> Element:
    """Several, beside each other where there is room."""
    return element("div", *drawn, class_="figures")
