"""Ratios of one run against what gather-core replaces: `python -m gather_bench.ratios`.

More ranks than cores, and other work on the machine, show in all columns alike: rounds are interleaved.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gather_bench.interleaved import Way, slowest_rank_medians
from gather_bench.local_ranks import run_local_ranks
from gather_bench.memory import skewed_array
from gather_bench.peers import seed_all_gather_list, torch_all_gather_object
from gather_core import Gatherer

_FITTING_SLOT_NBYTES = 160 * 1024
"""Holds one rank's DPR step: 48 vectors of 768 float32 are 144 KiB."""
_SKEWED_NBYTES = 64 << 20


@dataclass(frozen=True)
class Ratio:
    """How many times faster one way is than another, in one run."""

    world_size: int
    workload: str
    ours: str
    peer: str
    ours_s: float
    """Seconds per call on the slowest rank; the median of the rounds, unless said otherwise."""
    peer_s: float
    target: float
    """The least that is wanted."""

    @property
    def value(self) -> float:
        """The ratio itself."""
        return self.peer_s / self.ours_s

    @property
    def is_met(self) -> bool:
        """Whether it is at least what is wanted."""
        return self.value >= self.target

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        return (
            f"  {self.workload:8} {self.ours:12} vs {self.peer:17} {self.ours_s * 1e6:9.0f} us against "
            f"{self.peer_s * 1e6:9.0f} us: {self.value:5.1f} x, target {self.target:g} x {verdict}"
        )


@dataclass(frozen=True)
class _Workload:
    """An object, the ways to gather it, and what is wanted of them."""

    name: str
    ways: Mapping[str, Way]
    rounds: int
    targets: Mapping[tuple[str, str], float]
    calls: int | None = None
    """Of every way behind one barrier; None: as many as fill 30 ms."""

    def measure(self, world_size: int) -> list[Ratio]:
        medians = slowest_rank_medians(self.ways, self.rounds, self.calls)
        return [
            Ratio(world_size, self.name, ours, peer, medians[ours], medians[peer], target)
            for (ours, peer), target in self.targets.items()
        ]


def measure(world_size: int, transport: str) -> list[Ratio]:
    """Starts local ranks and measures all workloads on them."""
    ratios: list[Ratio] = run_local_ranks(world_size, _measure_on_rank, world_size, transport)
    return ratios


def _measure_on_rank(world_size: int, transport: str) -> list[Ratio]:
    with (
        Gatherer(transport=transport) as default,
        Gatherer(transport=transport, slot_nbytes=_FITTING_SLOT_NBYTES) as fit,
    ):
        workloads = [_ten_numbers(default), _dpr_step(default, fit), _large_array(default), _skewed(default)]
        return [ratio for workload in workloads for ratio in workload.measure(world_size)]


def _ten_numbers(default: Gatherer) -> _Workload:
    metrics = {f"metric_{number}": number * 1.5 for number in range(10)}
    ways: dict[str, Way] = {
        "default slot": lambda: default.all_gather(metrics),
        "all_gather_object": lambda: torch_all_gather_object(metrics),
    }
    target = 4 if default.world_size == 2 else 8
    return _Workload("dict", ways, 20, {("default slot", "all_gather_object"): target})


def _dpr_step(default: Gatherer, fit: Gatherer) -> _Workload:
    step = [torch.randn(16, 768), torch.randn(32, 768), list(range(16)), list(range(16, 32))]
    ways: dict[str, Way] = {
        "default slot": lambda: default.all_gather(step),
        "all_gather_object": lambda: torch_all_gather_object(step),
        "fitting slot": lambda: fit.all_gather(step),
        "all_gather_list": lambda: seed_all_gather_list(step, _FITTING_SLOT_NBYTES),
    }
    targets = {
        ("default slot", "all_gather_object"): 2.0,
        ("fitting slot", "all_gather_object"): 4.0,
        ("fitting slot", "all_gather_list"): 20.0,
    }
    return _Workload("DPR step", ways, 10, targets)


def _large_array(default: Gatherer) -> _Workload:
    array = np.arange(2 << 20, dtype=np.int64)
    ways: dict[str, Way] = {
        "default slot": lambda: default.all_gather(array),
        "all_gather_object": lambda: torch_all_gather_object(array),
    }
    return _Workload("16 MiB", ways, 6, {("default slot", "all_gather_object"): 4}, calls=2)


def _skewed(default: Gatherer) -> _Workload:
    """One rank has nearly all the bytes; it is not the first, through which others may go."""
    array = skewed_array(default.rank, default.world_size, _SKEWED_NBYTES)
    ways: dict[str, Way] = {
        "default slot": lambda: default.all_gather(array),
        "all_gather_object": lambda: torch_all_gather_object(array),
    }
    return _Workload("skewed", ways, 5, {("default slot", "all_gather_object"): 4}, calls=1)


def main() -> None:
    """Runs all workloads at each world size, prints the ratios and optionally writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-size", type=int, action="append", help="may be given several times; default 2 and 4")
    parser.add_argument("--transport", default="gloo", help="transport spec; default gloo")
    parser.add_argument("--json", type=Path, help="also write the ratios to this file")
    arguments = parser.parse_args()
    ratios: list[Ratio] = []
    for world_size in arguments.world_size or [2, 4]:
        print(f"{world_size} ranks, transport {arguments.transport}; medians of the slowest rank", flush=True)
        measured = measure(world_size, arguments.transport)
        print(*measured, sep="\n", flush=True)
        ratios += measured
    if arguments.json:
        rows = [asdict(ratio) | {"ratio": ratio.value} for ratio in ratios]
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
