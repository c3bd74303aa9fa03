"""The `all_gather_object` transport: on the job's own group, and honest about what it cannot."""

from typing import Any

import pytest

from gather_core import Gatherer, SetupError, Trust, UntrustedCodecError
from gather_core.transport import GroupContext
from gather_transports.single import SingleTransport
from gather_transports.torch_objects import AllGatherObjectTransport
from rank_pool import RankPool


def test_objects_of_any_size_come_in_one_round_over_a_sub_group(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        import torch.distributed as dist

        group = dist.new_group([1, 2])
        if rank == 0:
            return None
        with Gatherer(transport="all_gather_object", codec="msgpack", group=group) as gatherer:
            small = gatherer.all_gather({"rank": rank})
            large = gatherer.all_gather(b"x" * (200_000 * rank))
            only_last = gatherer.gather(rank, dst=1)
            return small, [len(each) for each in large], only_last, gatherer.stats.second_rounds

    small, sizes = [{"rank": 1}, {"rank": 2}], [200_000, 400_000]
    assert pool.values(3, body) == [None, (small, sizes, None, 0), (small, sizes, [1, 2], 0)]


def test_a_rank_that_cannot_encode_fails_every_rank_and_leaves_the_group_usable(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        with Gatherer(transport="all_gather_object") as gatherer:
            with pytest.raises(Exception, match="rank 1"):
                gatherer.all_gather((lambda: 0) if rank == 1 else 0)
            return gatherer.all_gather(rank)

    assert pool.values(2, body) == [[0, 1]] * 2


def test_it_carries_even_a_drop_in_that_took_the_place_of_the_function_it_calls(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        import torch.distributed as dist

        from gather_core import compat

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "all_gather_object", compat.all_gather_object)
            patch.setenv("GATHER_TRANSPORT", "all_gather_object")
            objects: list[Any] = [None] * world_size
            dist.all_gather_object(objects, {"rank": rank})
            return objects

    assert pool.values(2, body) == [[{"rank": 0}, {"rank": 1}]] * 2


def test_a_collective_of_the_job_in_its_place_is_an_error_that_says_what_is_shared(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        import torch.distributed as dist

        gatherer = Gatherer(transport="all_gather_object")
        if rank == 1:
            dist.all_gather_object([None] * world_size, "the job's own")
            return ""
        with pytest.raises(Exception, match="shares the job's group") as raised:
            gatherer.all_gather(0)
        return str(raised.value)

    assert "rank 1 was in an all_gather_object of its own, with a str" in pool.values(2, body)[0]


def test_it_is_refused_where_no_code_may_be_executed_as_torch_unpickles_the_bytes(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        with pytest.MonkeyPatch.context() as patch:
            if rank == 0:
                patch.setenv("GATHER_FORBID_CODE", "1")
            with pytest.raises(SetupError) as raised:
                Gatherer(codec="msgpack", transport="all_gather_object")
        return f"{type(raised.value.__cause__).__name__}: {raised.value}"

    first, second = pool.values(2, body)
    assert first.startswith(UntrustedCodecError.__name__)
    assert "transport 'all_gather_object' can execute code while it receives" in second
    assert AllGatherObjectTransport.capabilities.trust is Trust.CODE


def test_it_needs_a_group_of_torch() -> None:
    alone: GroupContext = SingleTransport.join(None)
    assert AllGatherObjectTransport.unavailable(alone) == "it needs a group of torch.distributed"
    assert AllGatherObjectTransport.unavailable(None) is None
