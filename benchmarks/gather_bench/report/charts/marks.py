"""What tells one series from another: a colour and the shape of its points, since not everybody sees colours alike."""

from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from gather_bench.report.markup import element

_NUM_COLORS = 7
"""That style.css has; grey is for peers."""
_SHAPES = {
    "circle": "M-4,0 a4,4 0 1,0 8,0 a4,4 0 1,0 -8,0z",
    "square": "M-3.5,-3.5h7v7h-7z",
    "triangle": "M0,-4.5L4.5,3.5H-4.5z",
    "diamond": "M0,-5L4.5,0L0,5L-4.5,0z",
    "cross": "M-4,-1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
    "flag": "M-3,-4.5L4.5,0L-3,4.5z",
}
_PEER = "peer"


@dataclass(frozen=True)
class Look:
    """The class of style.css that colours it, and its shape."""

    color: str
    shape: str

    @property
    def is_peer(self) -> bool:
        """Whether it is grey."""
        return self.color == _PEER


def looks(labels: Iterable[str], peers: Iterable[str]) -> dict[str, Look]:
    """Gives each label a look of its own, as far as there are any; peers are grey."""
    shapes = list(_SHAPES)
    ours = {
        label: Look(f"color{number % _NUM_COLORS}", shapes[number % len(shapes)]) for number, label in enumerate(labels)
    }
    theirs = {label: Look(_PEER, shapes[number % len(shapes)]) for number, label in enumerate(peers)}
    return ours | theirs


def mark(look: Look, x: float, y: float, hint: str) -> Element:
    """Draws a point around the pixel."""
    shape = element("path", d=_SHAPES[look.shape], transform=f"translate({x:.1f} {y:.1f})", class_=f"mark {look.color}")
    shape.append(element("title", hint))
    return shape


def legend(looks_of: dict[str, Look]) -> Element:
    """A list of what is what."""
    return element("ul", *(_entry(label, look) for label, look in looks_of.items()), class_="legend")


def _entry(label: str, look: Look) -> Element:
    line = element("line", x1=0, y1=8, x2=24, y2=8, class_=f"line {look.color}")
    drawing = element(
        "svg", line, mark(look, 12, 8, label), viewBox="0 0 24 16", width=24, height=16, aria_hidden="true"
    )
    return element("li", drawing, element("span", label))
