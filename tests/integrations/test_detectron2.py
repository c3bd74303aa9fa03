"""docs/how-to/detectron2.md: the two functions of detectron2's `comm`, over gather-core.

detectron2 is on no package index, so where it is not installed a module of the documented signatures stands in for it.
"""

import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch.distributed as dist

import detectron2_comm
from gather_core import RankFailedError
from page_example import page_shows
from rank_pool import RankPool

DOCUMENTED = {"all_gather": "(data, group=None)", "gather": "(data, dst=0, group=None)"}
PREDICTIONS = [[{"image_id": 7, "boxes": [[0.0, 1.0, 2.0, 3.0]]}], []]


def _comm() -> ModuleType:
    try:
        return importlib.import_module("detectron2.utils.comm")
    except ModuleNotFoundError:
        stand_in = ModuleType("comm")
        exec("\n".join(f"def {name}{arguments}: ..." for name, arguments in DOCUMENTED.items()), vars(stand_in))
        return stand_in


def _call_shape(function: Any) -> list[tuple[str, Any]]:
    return [(name, parameter.default) for name, parameter in inspect.signature(function).parameters.items()]


def test_the_page_shows_the_example_as_it_is() -> None:
    assert page_shows("how-to/detectron2.md", "detectron2_comm.py")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_it_is_called_as_detectron2_documents_it(name: str) -> None:
    assert _call_shape(getattr(detectron2_comm, name)) == _call_shape(getattr(_comm(), name))


def test_without_a_process_group_there_is_one_rank() -> None:
    assert detectron2_comm.all_gather({"a": 1}) == detectron2_comm.gather({"a": 1}) == [{"a": 1}]


def test_predictions_reach_the_rank_that_asks_also_within_a_group(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        comm = _comm()
        detectron2_comm.put_into(comm)
        groups = [dist.new_group([0]), dist.new_group([2, 1])]
        own = groups[0] if rank == 0 else groups[1]
        return [
            comm.all_gather(rank),
            comm.gather(PREDICTIONS[rank % 2], dst=1),
            comm.gather(rank, dst=dist.get_world_size(own) - 1, group=own),
        ]

    everything = [PREDICTIONS[0], PREDICTIONS[1], PREDICTIONS[0]]
    # torch sorts the ranks of a group, so rank 2 is the last one of [1, 2]
    expected = [[[0, 1, 2], [], [0]], [[0, 1, 2], everything, []], [[0, 1, 2], [], [1, 2]]]
    assert pool.values(3, body) == expected


def test_what_one_rank_cannot_pickle_is_an_error_on_all_and_the_next_call_works(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        with pytest.raises(RankFailedError, match="rank 1"):
            detectron2_comm.gather((lambda: None) if rank == 1 else None)
        return detectron2_comm.all_gather(rank)

    assert pool.values(2, body) == [[0, 1]] * 2
