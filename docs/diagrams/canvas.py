"""A sheet on which boxes, arrows and texts are put, written as an SVG that is legible on light and dark pages."""

from html import escape

_STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1c1e26; text-anchor: middle; }
.small { font-size: 12px; fill: #4a4f5c; }
.left { text-anchor: start; }
.strong { font-weight: 600; }
rect { fill: #eef0f8; stroke: #6673a8; rx: 5px; }
.accent { fill: #d8defa; stroke: #3949ab; }
.bad { fill: #fbe0dc; stroke: #b3402e; }
.plain { fill: none; stroke: #8a90a2; stroke-dasharray: 5 4; }
path { fill: none; stroke: #6673a8; stroke-width: 1.5px; }
marker path { fill: #6673a8; stroke: none; }
@media (prefers-color-scheme: dark) {
text { fill: #e6e8f0; }
.small { fill: #b6bac8; }
rect { fill: #2b3044; stroke: #8d9be0; }
.accent { fill: #35408a; stroke: #a5b1f5; }
.bad { fill: #5a2a24; stroke: #ef9a8c; }
.plain { fill: none; stroke: #9aa0b4; }
path { stroke: #8d9be0; }
marker path { fill: #8d9be0; }
}
"""
_MARKER = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
LINE = 17
"""Height of a line of text."""


class Canvas:
    """Units are pixels at full size; y goes down."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
            f'<defs>{_MARKER}<path d="M0 0 8 4 0 8z"/></marker></defs>\n'
        )
        self._items: list[str] = []

    def box(self, x: int, y: int, width: int, height: int, *lines: str, kind: str = "", small: bool = False) -> None:
        """Draws a box with lines of text in its middle; kinds: "accent", "bad", "plain"."""
        self._items.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="{kind}"/>')
        first = y + height / 2 - (len(lines) - 1) * LINE / 2 + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + number * LINE, line, kind="small" if small else "")

    def text(self, x: float, y: float, line: str, *, kind: str = "") -> None:
        """Writes a line; kinds, which may be joined: "small", "left", "strong"."""
        self._items.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(line)}</text>')

    def arrow(self, *points: tuple[int, int]) -> None:
        """Draws an arrow along the points."""
        way = " ".join(f"{x} {y}" for x, y in points)
        self._items.append(f'<path d="M{way}" marker-end="url(#tip)"/>')

    def svg(self) -> str:
        """The whole file."""
        return self._head + "\n".join(self._items) + "\n</svg>\n"
