"""Where the ranks of a run are."""

import platform
from dataclasses import dataclass
from typing import Self

from gather_bench.peers import torch_all_gather_object


@dataclass(frozen=True)
class Place:
    """The same on every rank."""

    world_size: int
    hosts: int

    @classmethod
    def find(cls) -> Self:
        """(all ranks of the default group) Counts ranks and hosts; the latter by their names, which stay here."""
        names = torch_all_gather_object(platform.node())
        return cls(len(names), len(set(names)))
