"""The fixtures `file` and `pair`, which the test modules share that say `pytest_plugins = ["loan_fixture"]`."""

from collections.abc import Iterator

import pytest

from gather_transports.owned_descriptor import Descriptor
from gather_transports.shared_file import create_file
from loan_pair import Pair
from shm_ranks import new_file


@pytest.fixture
def file() -> Iterator[Descriptor]:
    file = Descriptor(create_file(""))
    yield file
    file.close()


@pytest.fixture
def pair(file: Descriptor) -> Iterator[Pair]:
    with new_file() as fd:
        yield Pair(file, fd)
