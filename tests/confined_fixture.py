"""The fixture `confined`, which all test modules share that say `pytest_plugins = ["confined_fixture"]`."""

from collections.abc import Iterator

import pytest

from confined import Confined


@pytest.fixture(scope="session")
def confined() -> Iterator[Confined]:
    """A process for hostile input."""
    with Confined() as process:
        yield process
