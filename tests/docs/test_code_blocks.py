"""Every code block of the pages runs, or is excused by name."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gather_core.settings_sources import load_settings
from page_blocks import CODE, EXCUSES, PAGES, ROOT, RUN, blocks_of, problem_with, script_of, settings_file_of

RUNNER = Path(__file__).parents[1] / "page_runner.py"
WITH_A_SCRIPT = [page for page in PAGES if script_of(page)]


def run_scripts(pages: Sequence[Path]) -> list[str]:
    """What each page's script failed with; "" where it did not."""
    asked = json.dumps([(str(page), script_of(page), settings_file_of(page)) for page in pages])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(RUNNER)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    failures: list[str] = json.loads(done.stdout)
    return failures


PLANTED = """text
```python fragment
not python
```

```python run
value = 1
```
```python run
assert value == {}
```
"""
ON_RANKS = """```python run
import torch.distributed as dist
from gather_core import Gatherer
dist.init_process_group("gloo")
class Mine: pass
with Gatherer() as gatherer:
    assert type(gatherer.all_gather(Mine())[{}]) is Mine
dist.destroy_process_group()
```
"""
PLANTED_PAGES = {
    "good.md": PLANTED.format(1),
    "bad.md": PLANTED.format(2),
    "two_ranks.md": ON_RANKS.format(1),
    "no_third_rank.md": ON_RANKS.format(2),
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Those of all pages, and by their names alone those of the planted ones."""
    folder = tmp_path_factory.mktemp("planted")
    for name, text in PLANTED_PAGES.items():
        (folder / name).write_text(text)
    pages = [*WITH_A_SCRIPT, *(folder / name for name in PLANTED_PAGES)]
    names = [*WITH_A_SCRIPT, *map(Path, PLANTED_PAGES)]
    return dict(zip(names, run_scripts(pages), strict=True))


@pytest.mark.parametrize("page", WITH_A_SCRIPT, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, failures: dict[Path, str]) -> None:
    assert not failures[page], failures[page]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_settings_files_of_a_page_can_be_loaded(page: Path, tmp_path: Path) -> None:
    if text := settings_file_of(page):
        (tmp_path / "job.toml").write_text(text)
        assert load_settings(tmp_path / "job.toml")


def test_every_block_runs_or_is_excused_by_name() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    problems = [f"{block.where}: {problem}" for block in blocks if (problem := problem_with(block))]
    assert not problems, "\n".join(problems)
    code = [block for block in blocks if block.language in CODE]
    excused = [block for block in code if block.mark in EXCUSES]
    assert len(code) == len([block for block in code if block.mark == RUN]) + len(excused)
    assert {block.mark for block in excused} == EXCUSES.keys(), "an excuse that nobody uses"


def test_no_fence_is_left_open() -> None:
    for page in PAGES:
        fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
        assert len(fences) == 2 * len(blocks_of(page)), page


def test_blocks_share_their_names_and_a_failure_is_told_by_the_line_of_the_page(failures: dict[Path, str]) -> None:
    assert not failures[Path("good.md")]
    assert 'bad.md", line 10' in failures[Path("bad.md")]


def test_a_page_that_joins_a_process_group_runs_on_two_ranks(failures: dict[Path, str]) -> None:
    assert not failures[Path("two_ranks.md")]
    assert "IndexError" in failures[Path("no_third_rank.md")]


@pytest.mark.parametrize("head", ["```", "```python", "```python nonsense", "```bash run", "```text run", "```ruby"])
def test_a_block_without_a_mark_or_with_a_wrong_one_is_a_problem(head: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{head}\nx\n```\n")
    assert problem_with(*blocks_of(page))
