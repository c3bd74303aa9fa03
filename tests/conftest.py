"""Fixtures for all tests, and the check that a session leaves nothing behind."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

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
    before = {look: look() for look in (_children, _shared_memory)}
    yield
    for look, there_before in before.items():
        left = _still_there(look, there_before)
        assert not left, f"the session left behind ({look.__name__}): {sorted(left)}"


@pytest.fixture(scope="session")
def pool(nothing_is_left_behind: None) -> Iterator[RankPool]:
    """Worker processes for ranks, stopped after the session."""
    pool = RankPool()
    yield pool
    left = pool.close()
    assert not left, f"bodies left behind: {left}"


def _still_there(look: Callable[[], set[str]], before: set[str], within_s: float = 3) -> set[str]:
    """What is new and stays: another job's temporary things go, and a resource tracker needs a moment to unlink."""
    deadline = time.monotonic() + within_s
    left = look() - before
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= look()
    return left


def _children() -> set[str]:
    """Process ids of our children (Linux), but for multiprocessing's resource tracker, which ends with us."""
    pids = {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}
    return {pid for pid in pids if "resource_tracker" not in _read(Path(f"/proc/{pid}/cmdline"))}


def _shared_memory() -> set[str]:
    """Entries of /dev/shm that no process has mapped: those of other jobs on this machine are in use."""
    names = {path.name for path in Path("/dev/shm").glob("*")}
    if not names:
        return names
    mapped = "".join(_read(maps) for maps in Path("/proc").glob("[0-9]*/maps"))
    return {name for name in names if f"/dev/shm/{name}\n" not in mapped}


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has ended, or is another user's
        return ""
