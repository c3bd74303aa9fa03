"""Timing of several ways to gather, taken in turns, so that other work on the machine shows in all of them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
import torch.distributed as dist

Way = Callable[[], object]

_ROUND_S = 0.03
_MIN_CALLS, _MAX_CALLS = 2, 20_000
_LONG_CALL_IN_ROUNDS = 10
"""A call that takes this long needs no second look: two of them are more than a round."""


def slowest_rank_medians(
    ways: Mapping[str, Way], rounds: int, calls: int | None = None, *, round_s: float = _ROUND_S
) -> dict[str, float]:
    """(all ranks of the default group) The medians of what `slowest_rank_rounds` returns, in seconds per call.

    Args:
        ways: What to call, by name.
        rounds: How many rounds are counted.
        calls: Of every way behind one barrier; None: for each, `fitting_calls`.
        round_s: How long those take.
    """
    calls_of = {name: calls or fitting_calls(way, round_s) for name, way in ways.items()}
    times = slowest_rank_rounds(ways, rounds, calls_of)
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


def fitting_calls(way: Way, round_s: float = _ROUND_S) -> int:
    """(all ranks of the default group) Calls in a row that take about `round_s` on the slowest rank: 2 to 20,000.

    Ranks leave a barrier up to half a millisecond apart, and the first calls may take ten times as long as later ones:
    both are to be little of a round. So it is more and more calls that tell, until they take half of one; the quicker
    of two turns, as other work may come in between.
    """
    calls, elapsed_s = 1, slowest_rank_s(way, 1)
    while elapsed_s < round_s * (_LONG_CALL_IN_ROUNDS if calls == 1 else 0.5) and calls < _MAX_CALLS:
        calls = min(10 * calls, _calls_in_a_round(calls, elapsed_s, round_s))
        elapsed_s = min(slowest_rank_s(way, calls) for _ in range(2))
    return _calls_in_a_round(calls, elapsed_s, round_s)


def _calls_in_a_round(calls: int, elapsed_s: float, round_s: float) -> int:
    return max(_MIN_CALLS, min(_MAX_CALLS, round(calls * round_s / max(elapsed_s, 1e-9))))


def slowest_rank_s(way: Way, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """(all ranks of the default group) Seconds that the calls take together on the slowest rank."""
    dist.barrier()
    started = clock()
    for _ in range(calls):
        way()
    slowest = torch.tensor(clock() - started, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.item()
