"""Whether gather-core is still much faster than what it replaces: `python -m gather_bench.regression`.

Takes some seconds on two local ranks, and exits with 1 where it is not. Shared memory, Gloo and
`torch.distributed.all_gather_object` take turns, so that other work on the machine shows in all of them alike, and the
fastest round of each is compared, which such work has disturbed least. The least ratios leave room for what remains of
it. A payload of which one is missed is measured again, twice at most.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gather_bench.bench.payloads import payload
from gather_bench.interleaved import Way, slowest_rank_rounds
from gather_bench.local_ranks import run_local_ranks
from gather_bench.peers import torch_all_gather_object
from gather_bench.ratios import Ratio
from gather_core import Gatherer

LEAST: Mapping[str, Mapping[str, float]] = {
    "metrics": {"shm": 10, "gloo": 1.5},
    "dpr_step": {"shm": 3, "gloo": 1.2},
}
"""Payload and transport -> the least ratio. Two idle cores give some 68, 4, 15 and 3; two busy ones, with five to ten
processes for each, gave 12 to 32, 2.2 to 3.4, 4.8 to 11 and 2.4 to 4.7."""
_WORLD_SIZE = 2
_PEER = "all_gather_object"
_ATTEMPTS = 3
_ROUNDS = 40
_CALLS = {"shm": 200, "gloo": 5, _PEER: 5}
"""Rounds of a millisecond or a few: short enough that some are not disturbed, long beside the start of a round."""


def measured_until_met(measure: Callable[[], Sequence[Ratio]]) -> list[Ratio]:
    """Measures until each ratio was met in some measurement, three times at most.

    Returns:
        Of each ratio the best that was measured, in the order in which `measure` returns them.
    """
    best = list(measure())
    for _ in range(_ATTEMPTS - 1):
        if all(ratio.is_met for ratio in best):
            break
        best = [max(pair, key=lambda ratio: ratio.value) for pair in zip(best, measure(), strict=True)]
    return best


def complaints(ratios: Sequence[Ratio]) -> list[str]:
    """A line for each ratio that was missed: of what, how much it is, and how much is wanted."""
    return [
        f"{each.workload} over {each.ours} is {each.value:.2f} times as fast as {each.peer}; at least {each.target:g} "
        f"is wanted, and was missed {_ATTEMPTS} times"
        for each in ratios
        if not each.is_met
    ]


def _measure_on_rank() -> list[Ratio]:
    with Gatherer(transport="shm") as shm, Gatherer(transport="gloo") as gloo:
        gatherers = {"shm": shm, "gloo": gloo}
        return [ratio for name in LEAST for ratio in measured_until_met(partial(_measure_payload, name, gatherers))]


def _measure_payload(name: str, gatherers: Mapping[str, Gatherer]) -> list[Ratio]:
    obj = payload(name)(gatherers["shm"].rank)
    ways: dict[str, Way] = {
        transport: partial(gatherer.all_gather, obj) for transport, gatherer in gatherers.items()
    } | {_PEER: partial(torch_all_gather_object, obj)}
    rounds = slowest_rank_rounds(ways, _ROUNDS, _CALLS)
    fastest = {way: min(seconds) for way, seconds in rounds.items()}
    return [
        Ratio(_WORLD_SIZE, name, transport, _PEER, fastest[transport], fastest[_PEER], least)
        for transport, least in LEAST[name].items()
    ]


def main() -> None:
    """Measures, prints the ratios, and exits with 1 where one was missed."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ratios: list[Ratio] = run_local_ranks(_WORLD_SIZE, _measure_on_rank)
    print(*ratios, sep="\n", flush=True)
    if missed := complaints(ratios):
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
