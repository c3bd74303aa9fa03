"""Ratios of one run against what gather-core replaces: `python -m gather_bench.ratios`.

Rounds are interleaved (ours, theirs, ours, ...); each is a few calls behind one barrier, so that the barrier's own skew
does not count, and takes as long as on the slowest rank; medians are compared. More ranks than cores, and other work
on the machine, show in all columns alike.
"""

import argparse
import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.multiprocessing.spawn import spawn

from gather_bench.peers import seed_all_gather_list, torch_all_gather_object
from gather_core import Gatherer

Ways = dict[str, Callable[[], object]]
_FITTING_SLOT = 160 * 1024


def _small() -> object:
    return {f"metric_{number}": number * 1.5 for number in range(10)}


def _dpr_step() -> object:
    return [torch.randn(16, 768), torch.randn(32, 768), list(range(16)), list(range(16))]


def _large() -> object:
    return np.arange(2 << 20, dtype=np.int64)


def _medians(ways: Ways, rounds: int, calls: int) -> dict[str, float]:
    """Seconds per call on the slowest rank, median over the rounds; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            dist.barrier()
            started = time.perf_counter()
            for _ in range(calls):
                way()
            slowest = torch.tensor((time.perf_counter() - started) / calls)
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            if number:
                times[name].append(slowest.item())
    return {name: median(values) for name, values in times.items()}


def _report(case: str, medians: dict[str, float], targets: dict[tuple[str, str], float]) -> None:
    for (ours, peer), target in targets.items():
        ratio = medians[peer] / medians[ours]
        mark = "" if ratio >= target else "   below the target"
        numbers = f"{medians[ours] * 1e6:9.0f} us against {medians[peer] * 1e6:9.0f} us"
        print(f"  {case:10} {ours:14} vs {peer:18} {numbers}: {ratio:5.1f} x (target {target:g}){mark}", flush=True)


def _worker(rank: int, world_size: int, port: int, transport: str) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, None, False, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=120))
    default, fitting = Gatherer(transport=transport), Gatherer(transport=transport, slot_nbytes=_FITTING_SLOT)
    small, step, large = _small(), _dpr_step(), _large()
    results: list[tuple[str, dict[str, float], dict[tuple[str, str], float]]] = [
        (
            "dict",
            _medians(
                {"default slot": lambda: default.all_gather(small), "torch": lambda: torch_all_gather_object(small)},
                30,
                10,
            ),
            {("default slot", "torch"): 3},
        ),
        (
            "DPR step",
            _medians(
                {
                    "default slot": lambda: default.all_gather(step),
                    "fitting slot": lambda: fitting.all_gather(step),
                    "torch": lambda: torch_all_gather_object(step),
                    "seed": lambda: seed_all_gather_list(step, _FITTING_SLOT),
                },
                15,
                5,
            ),
            {("default slot", "torch"): 2, ("fitting slot", "torch"): 4, ("fitting slot", "seed"): 20},
        ),
        (
            "16 MiB",
            _medians(
                {"default slot": lambda: default.all_gather(large), "torch": lambda: torch_all_gather_object(large)},
                5,
                2,
            ),
            {("default slot", "torch"): 2},
        ),
    ]
    if rank == 0:
        print(f"world size {world_size}, {default.describe()}")
        for case, medians, targets in results:
            _report(case, medians, targets)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Runs all cases at each world size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world-size", type=int, action="append", help="may be given several times; default 2 and 4")
    parser.add_argument("--transport", default="gloo")
    arguments: Any = parser.parse_args()
    for world_size in arguments.world_size or [2, 4]:
        store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        spawn(_worker, (world_size, store.port, arguments.transport), world_size)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
