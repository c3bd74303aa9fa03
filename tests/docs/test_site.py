"""The site has every page, in its place; what pages refer to is there. (`make docs` builds it, strictly.)"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import command_line
import draw
import error_tree
import gather_core
import hooks
import settings_tables
from gather_core import errors
from page_blocks import PAGES, ROOT

DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def pages_of(nav: Any) -> Iterator[str]:
    match nav:
        case str():
            yield nav
        case list():
            for item in nav:
                yield from pages_of(item)
        case dict():
            for item in nav.values():
                yield from pages_of(item)


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_every_page_is_in_the_navigation_once() -> None:
    nav = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in (found[1] or found[2] for found in _LINK.finditer(page.read_text())):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), target
            assert not anchor or anchor in anchors_of(file), target
            assert page.parent == ROOT or file.is_relative_to(DOCS), f"{target} is not on the site"


def test_the_diagrams_are_those_that_the_script_draws() -> None:
    for name, make in draw.DIAGRAMS.items():
        assert (DOCS / "diagrams" / name).read_text() == make(), "run docs/diagrams/draw.py"


def test_the_reference_has_every_public_name() -> None:
    shown = {
        name.rpartition(".")[2]
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }
    assert shown >= {*gather_core.__all__, *errors.__all__}


def test_what_is_made_from_the_code_is_complete() -> None:
    made = command_line.command_line()
    assert all(
        text in made for text in ("## gather bench", "## gather doctor", "`--strict`", "`--timeout-s`", "`NAME`")
    )
    tables = settings_tables.settings_tables()
    assert "| `slot_nbytes` | `16384` | `GATHER_SLOT_NBYTES` |" in tables
    assert "| `depth` | `100` | `GATHER_LIMITS__DEPTH` |" in tables
    assert all(name in error_tree.error_tree() for name in errors.__all__)


def test_a_variable_without_a_description_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_tables, "known_variables", lambda: ["GATHER_CODEC", "GATHER_NEW"])
    with pytest.raises(ValueError, match="GATHER_NEW"):
        settings_tables.settings_tables()


def test_marks_are_not_shown_and_makers_take_their_places() -> None:
    page = "# Page\n\n```python run\nx\n```\n\n```text\nfalse alarm\n```\n\n<!-- made: error-tree -->\n"
    shown = hooks.on_page_markdown(page)
    assert "```python\nx\n```" in shown
    assert "GroupBrokenError" in shown
    assert "made:" not in shown
    with pytest.raises(ValueError, match="nothing makes"):
        hooks.on_page_markdown("<!-- made: nonsense -->")
