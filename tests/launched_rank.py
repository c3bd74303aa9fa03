"""What torchrun sets for a rank, for bodies on ranks of a RankPool whose library asks the environment."""

import contextlib
from collections.abc import Iterator

from environment import variables


@contextlib.contextmanager
def as_under_torchrun(rank: int, world_size: int) -> Iterator[None]:
    """Sets the variables for a job on one host. The process group is there already, so the address is never used."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "GROUP_RANK": 0,
    }
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none"}
    with variables(**{name: str(value) for name, value in place.items()}, **address):
        yield
