"""The Python blocks of README.md and docs/ that are marked as such, "```python run", run as they stand there."""

from pathlib import Path

import pytest

from fresh_python import run_python
from page_script import BLOCK, MARK, runnable_script

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_RUN = "import sys; page, script = sys.argv[1:]; exec(compile(script, page, 'exec'), {'__name__': '__main__'})"


def _pages_that_run() -> list[Path]:
    return [page for page in PAGES if runnable_script(page.read_text())]


@pytest.mark.parametrize("page", _pages_that_run(), ids=lambda page: page.name)
def test_the_marked_blocks_of_a_page_run_one_after_the_other(page: Path) -> None:
    run_python(_RUN, str(page), runnable_script(page.read_text()))


def test_pages_that_teach_by_example_are_run() -> None:
    assert {page.name for page in _pages_that_run()} >= {"msgpack.md", "write-a-codec.md", "write-a-transport.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_python_block_is_marked_with_anything_else(page: Path) -> None:
    marks = {block[1] for block in BLOCK.finditer(page.read_text())}
    assert marks <= {"python", MARK}


PLANTED = "text\n```python\nnot python\n```\n\n```python run\nvalue = 1\n```\n```python run\nassert value == {}\n```\n"


def test_blocks_share_their_names_and_a_failure_is_told_by_the_line_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run_python(_RUN, str(page), runnable_script(PLANTED.format(1)))
    with pytest.raises(AssertionError, match=r'page\.md", line 10'):
        run_python(_RUN, str(page), runnable_script(PLANTED.format(2)))
