"""The hosts that predictions are about, and what is assumed of their network."""

from collections.abc import Mapping
from dataclasses import dataclass

from gather_bench.model.terms import Term

_MOST_RANKS = 8192
_EACH_TIMES = 4


@dataclass(frozen=True)
class Cluster:
    """Where the ranks are thought to be: as many hosts as they need, with a core like the measured ones for each."""

    ranks_per_host: int = 8
    latency_us: float = 30.0
    gbit_per_s: float = 25.0

    @property
    def network(self) -> Mapping[Term, float]:
        """What is assumed of the network, unless points between hosts have shown it."""
        return {Term.NETWORK_HOP: self.latency_us * 1e-6, Term.NETWORK_BYTE: 8e-9 / self.gbit_per_s}

    def hosts(self, world_size: int) -> int:
        """How many hosts so many ranks need."""
        return -(-world_size // self.ranks_per_host)

    def world_sizes(self) -> list[int]:
        """From one full host to the most ranks, each four times the one before."""
        sizes = [self.ranks_per_host]
        while sizes[-1] * _EACH_TIMES < _MOST_RANKS:
            sizes.append(sizes[-1] * _EACH_TIMES)
        return [*sizes, _MOST_RANKS]
