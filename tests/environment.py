"""Environment variables of this process, for a while."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Sets them; also for bodies on ranks of a RankPool, which live on in their process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield
