"""Fixtures for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from rank_pool import RankPool

settings.register_profile("gather", deadline=None, database=None, derandomize="CI" in os.environ)
settings.load_profile("gather")


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Worker processes for ranks; nothing of them is left behind."""
    shared_memory_before = _shared_memory()
    pool = RankPool()
    yield pool
    pool.close()
    assert _children() == [], "processes were left behind"
    assert _shared_memory() <= shared_memory_before, "shared memory was left behind"


def _shared_memory() -> set[str]:
    path = Path("/dev/shm")
    return {entry.name for entry in path.iterdir()} if path.is_dir() else set()


def _children() -> list[str]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return path.read_text().split() if path.exists() else []
