"""The example of a page, and whether the page shows it as it is."""

from page_blocks import ROOT, blocks_of

_DOCS = ROOT / "docs"


def page_shows(page: str, example: str) -> bool:
    """Whether a page of docs/ has a file of docs/examples/ in a block of its own, unchanged."""
    code = (_DOCS / "examples" / example).read_text()
    return code in [block.text for block in blocks_of(_DOCS / page)]
