"""Timing of several ways to gather, taken in turns, so that other work on the machine shows in all of them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
import torch.distributed as dist

Way = Callable[[], object]


def slowest_rank_medians(ways: Mapping[str, Way], rounds: int, calls: int = 1) -> dict[str, float]:
    """(all ranks of the default group) The medians of what `slowest_rank_rounds` returns, in seconds per call."""
    times = slowest_rank_rounds(ways, rounds, dict.fromkeys(ways, calls))
    return {name: median(values) for name, values in times.items()}


def slowest_rank_rounds(
    ways: Mapping[str, Way],
    rounds: int,
    calls: Mapping[str, int],
    *,
    clock: Callable[[], float] = time.perf_counter,
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """(all ranks of the default group) Times each way in every round: ours, theirs, ours, ...

    A round of one way is some calls behind one barrier, so that ranks leaving the barrier at different moments do not
    count for much, and takes as long as on the slowest rank. A first round warms up and is not counted.

    Args:
        ways: What to call, by name; the same names in the same order on every rank.
        rounds: How many rounds are counted.
        calls: Calls behind one barrier, by name; the same on every rank.
        clock: Tells the time in seconds.
        after_round: Called after each round, the first too, while nothing is timed.

    Returns:
        Seconds per call in every round, by name; the same on every rank.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            elapsed_s = slowest_rank_s(way, calls[name], clock)
            if number:
                times[name].append(elapsed_s / calls[name])
        after_round()
    return times


def slowest_rank_s(way: Way, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """(all ranks of the default group) Seconds that the calls take together on the slowest rank."""
    dist.barrier()
    started = clock()
    for _ in range(calls):
        way()
    slowest = torch.tensor(clock() - started, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.item()
