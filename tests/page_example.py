"""The example of a page, and whether the page shows it as it is."""

from pathlib import Path

_DOCS = Path(__file__).parents[1] / "docs"


def page_shows(page: str, example: str) -> bool:
    """Whether a page of docs/ has a file of docs/examples/ in a block of its own, unchanged."""
    code = (_DOCS / "examples" / example).read_text()
    return f"```python\n{code}```\n" in (_DOCS / page).read_text()
