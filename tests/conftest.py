"""Fixtures for all tests, and the check that a session leaves nothing behind."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from leftovers import shared_memory, still_there
from rank_pool import RankPool

settings.register_profile("gather", deadline=None, database=None, derandomize="CI" in os.environ)
settings.load_profile("gather")

_HYPOTHESIS_HOME = tempfile.TemporaryDirectory(prefix="gather-hypothesis-")
set_hypothesis_home_dir(_HYPOTHESIS_HOME.name)  # else caches in the working tree, database or not, from collection on

_LEFT_BY_OTHERS = ("pytorch-errorfile", "torch")  # by torchrun, for one


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for temporary files of this process and its children; fails where something stays in it."""
    tmp_path_factory.getbasetemp()  # pytest keeps its own folder, on purpose, where it always is
    with tempfile.TemporaryDirectory(prefix="gather-tests-") as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", name)
        patch.setattr(tempfile, "tempdir", name)
        yield Path(name)
        left = [path.name for path in Path(name).iterdir() if not path.name.startswith(_LEFT_BY_OTHERS)]
        assert not left, f"temporary files were left behind: {left}"
    _HYPOTHESIS_HOME.cleanup()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind(temporary_folder: Path) -> Iterator[None]:
    """Fails the session where processes or shared memory of ours outlive its last test."""
    before = {look: look() for look in (_children, shared_memory)}
    yield
    for look, there_before in before.items():
        left = still_there(look, there_before)
        assert not left, f"the session left behind ({look.__name__}): {sorted(left)}"


@pytest.fixture(scope="session")
def pool(nothing_is_left_behind: None) -> Iterator[RankPool]:
    """Worker processes for ranks, stopped after the session."""
    pool = RankPool()
    yield pool
    left = pool.close()
    assert not left, f"bodies left behind: {left}"


def _children() -> set[str]:
    """Process ids of our children (Linux), but for multiprocessing's resource tracker, which ends with us."""
    pids = {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}
    return {pid for pid in pids if "resource_tracker" not in _read(Path(f"/proc/{pid}/cmdline"))}


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has ended, or is another user's
        return ""
