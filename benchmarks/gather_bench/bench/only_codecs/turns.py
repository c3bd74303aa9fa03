"""Timing of several calls in one process, taken in turns, so that other work on the machine shows in all alike."""

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median

from gather_bench.bench.results import Timing

_ROUND_S = 0.02
_MAX_CALLS = 5000
_PROBES = 3

Call = Callable[[], object]
Timings = Mapping[str, tuple[int, Timing]]
"""Name -> calls in a row, and seconds per call."""


def time_in_turns(
    timed: Mapping[str, Call],
    rounds: int,
    calls: int | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times each call in every round, one after the other; a first round warms up and is not counted.

    As in timeit, garbage is not collected meanwhile: how long that takes depends on what else the process holds.

    Args:
        timed: What to call, by name.
        rounds: How many rounds are counted.
        calls: Calls in a row; None: for each, what fills a round.
        clock: Tells the time in seconds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _time_in_turns(timed, rounds, calls, clock)
    finally:
        if was_enabled:
            gc.enable()


def _time_in_turns(timed: Mapping[str, Call], rounds: int, calls: int | None, clock: Callable[[], float]) -> Timings:
    calls_of = {name: calls or fitting_calls(call, clock) for name, call in timed.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, call in timed.items():
            elapsed_s = _elapsed_s(call, calls_of[name], clock)
            if number:
                seconds[name].append(elapsed_s / calls_of[name])
    return {name: (calls_of[name], Timing.of(values)) for name, values in seconds.items()}


def fitting_calls(call: Call, clock: Callable[[], float] = time.perf_counter) -> int:
    """Calls that take about as long as a round should, going by the middle one of three."""
    probe_s = median(_elapsed_s(call, 1, clock) for _ in range(_PROBES))
    return max(1, min(_MAX_CALLS, round(_ROUND_S / max(probe_s, 1e-9))))


def _elapsed_s(call: Call, calls: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(calls):
        call()
    return clock() - started
