"""Elements of a page and of its drawings; whatever is put into them is text, and is escaped when they are written."""

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None


def element(tag: str, *children: Child, **attributes: str | float) -> Element:
    """Makes an element of HTML or SVG.

    Args:
        tag: Its name.
        children: In order; None is left out.
        attributes: `class_` is written as `class`, `stroke_width` as `stroke-width`; numbers get at most 2 decimals.
    """
    made = Element(tag, {_name(name): _value(value) for name, value in attributes.items()})
    append(made, children)
    return made


def append(parent: Element, children: Iterable[Child]) -> None:
    """Adds children at the end, which ElementTree does in another way for texts than for elements."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif child is not None and len(parent):
            parent[-1].tail = (parent[-1].tail or "") + child
        elif child is not None:
            parent.text = (parent.text or "") + child


def table(headers: Sequence[str], rows: Iterable[Sequence[Child]], *, texts: int = 1) -> Element:
    """Makes a table that scrolls where it is too wide.

    Args:
        headers: One per column.
        rows: As many cells each.
        texts: So many columns from the left hold text; those after them hold numbers.
    """
    head = element("tr", *(element("th", header, **_alignment(i, texts)) for i, header in enumerate(headers)))
    body = (element("tr", *(element("td", cell, **_alignment(i, texts)) for i, cell in enumerate(row))) for row in rows)
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex=0)


def to_document(root: Element) -> str:
    """Writes a whole page."""
    return f"<!DOCTYPE html>\n{tostring(root, encoding='unicode', method='html')}\n"


def _alignment(column: int, texts: int) -> dict[str, str]:
    return {} if column < texts else {"class_": "number"}


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
