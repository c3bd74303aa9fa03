"""The time of a step's gather beside that of what gather-core replaces, in the same run."""

from typing import Any

from gather_bench.interleaved import Way, slowest_rank_medians
from gather_bench.peers import seed_all_gather_list, seed_nbytes, torch_all_gather_object
from gather_core import Gatherer

_ROUNDS = 20
_CALLS = 3


def compare_gather_times(objects: list[Any], gatherer: Gatherer, fitting: Gatherer) -> dict[str, float]:
    """(all ranks) Gathers the same objects in each way, in turns.

    Args:
        objects: What this worker puts in.
        gatherer: The one that the training used.
        fitting: One whose slots hold the objects.

    Returns:
        Seconds on the slowest worker, median, by way; `gatherer` comes first.
    """
    max_size = max(gatherer.all_gather(seed_nbytes(objects), tag="max_size"))
    ways: dict[str, Way] = {_name(gatherer): lambda: gatherer.all_gather(objects)}
    if fitting.slot_nbytes != gatherer.slot_nbytes:
        ways[_name(fitting)] = lambda: fitting.all_gather(objects)
    ways["torch.distributed.all_gather_object"] = lambda: torch_all_gather_object(objects)
    ways[f"all_gather_list of DPR, max_size={max_size}"] = lambda: seed_all_gather_list(objects, max_size)
    return slowest_rank_medians(ways, _ROUNDS, _CALLS)


def _name(gatherer: Gatherer) -> str:
    return f"Gatherer over {gatherer.transport.spec}, slots of {gatherer.slot_nbytes} bytes"
