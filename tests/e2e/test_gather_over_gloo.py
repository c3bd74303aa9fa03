"""Healthy operations over real processes and Gloo."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from gather_core import Gatherer, GroupContext, SetupError, SlotOverflowError, auto_choice, registry
from gather_core.auto_choice import Candidate
from gather_transports.gloo import GlooTransport
from rank_pool import RankPool

TWO_ROUNDS = "gloo:hub_up_to_nbytes=0,all_to_all_up_to_nbytes=0,chunk_nbytes=4096"
"""Round 1 carries no more than the slot."""


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_operation_gives_every_rank_what_it_promises(pool: RankPool, world_size: int) -> None:
    def body(rank: int, world_size: int) -> dict[str, Any]:
        with Gatherer(transport="gloo", timeout_s=30) as gatherer:
            return {
                "all_gather": gatherer.all_gather({"rank": rank, "nothing": None}),
                "gather": gatherer.gather([rank] * rank, dst=world_size - 1),
                "broadcast": gatherer.broadcast("from the last" if rank == world_size - 1 else None, world_size - 1),
                "run": gatherer.run(lambda factor: factor * rank, 10),
            }

    ranks = range(world_size)
    for rank, value in enumerate(pool.values(world_size, body)):
        assert value["all_gather"] == [{"rank": r, "nothing": None} for r in ranks]
        assert value["gather"] == ([[r] * r for r in ranks] if rank == world_size - 1 else None)
        assert value["broadcast"] == "from the last"
        assert value["run"] == [10 * r for r in ranks]


@pytest.mark.parametrize("transport", ["gloo", TWO_ROUNDS])
@pytest.mark.parametrize("codec", ["pickle", "cloudpickle", "msgpack", "msgpack+zstd", "pickle+zstd"])
def test_uneven_arrays_and_tensors_arrive_bit_for_bit(pool: RankPool, codec: str, transport: str) -> None:
    def body(rank: int, world_size: int) -> bool:
        def payload(of: int) -> dict[str, Any]:
            generator = torch.Generator().manual_seed(of)
            return {
                "tensor": torch.randn(1 + 70 * of, 768, generator=generator),
                "half": torch.arange(of * 5, dtype=torch.bfloat16),
                "array": np.arange(of * 40_001),
                "ids": list(range(of)),
            }

        with Gatherer(codec, transport, timeout_s=30) as gatherer:
            everyone = gatherer.all_gather(payload(rank))
            on_root = gatherer.gather(payload(rank), dst=1) or everyone
            sent = gatherer.broadcast(payload(2) if rank == 2 else None, src=2)
        for of, objects in [*enumerate(zip(everyone, on_root, strict=True)), (2, (sent,))]:
            for found in objects:
                expected = payload(of)
                same = all(torch.equal(found[key], expected[key]) for key in ("tensor", "half"))
                if not same or not np.array_equal(found["array"], expected["array"]) or found["ids"] != expected["ids"]:
                    return False
        return True

    assert pool.values(3, body) == [True] * 3


@pytest.mark.parametrize("transport", ["gloo", TWO_ROUNDS])
def test_payloads_around_the_slot_size_and_around_a_chunk_arrive(pool: RankPool, transport: str) -> None:
    def body(rank: int, world_size: int, transport: str) -> list[bool]:
        fine = []
        with Gatherer(transport=transport, slot_nbytes=2048, timeout_s=30) as gatherer:
            for nbytes in [0, 1, 1700, *range(1780, 2060), 4030, 4096, 4097, 8192, 100_000]:
                parts = gatherer.all_gather(bytes([rank]) * (nbytes if rank == 0 else 5))
                fine.append(parts == [bytes(nbytes), *(bytes([r]) * 5 for r in range(1, world_size))])
        return fine

    assert all(all(fine) for fine in pool.values(3, body, transport))


@pytest.mark.parametrize("slot_nbytes", [1024, 1025, 1 << 20])
def test_scattered_and_read_only_memory_travels_through_slots_of_any_size(pool: RankPool, slot_nbytes: int) -> None:
    def body(rank: int, world_size: int, slot_nbytes: int) -> bool:
        scattered = np.arange(20_000)[::2]
        read_only = np.arange(10_000)
        read_only.flags.writeable = False
        tensor = torch.arange(20_000).view(100, 200).T
        with Gatherer(transport="gloo", slot_nbytes=slot_nbytes, timeout_s=30) as gatherer:
            parts = gatherer.all_gather((scattered, read_only, tensor, b"", None, memoryview(b"ab").tobytes()))
            fine = gatherer.slot_nbytes % 64 == 0 and len(parts) == world_size
        for first, second, third, *rest in parts:
            same = np.array_equal(first, scattered) and np.array_equal(second, read_only) and torch.equal(third, tensor)
            fine = fine and same and rest == [b"", None, b"ab"]
        return fine

    assert pool.values(2, body, slot_nbytes) == [True, True]


def test_overflow_as_an_error_names_each_rank_and_size_everywhere(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[dict[int, int], list[int]]:
        with Gatherer(transport="gloo", slot_nbytes=2048, overflow="error", timeout_s=30) as gatherer:
            with pytest.raises(SlotOverflowError) as caught:
                gatherer.all_gather(b"x" * (5000 if rank else 10))
            return caught.value.nbytes, gatherer.all_gather(rank)

    outcomes = pool.values(3, body)
    assert outcomes == [outcomes[0]] * 3
    assert set(outcomes[0][0]) == {1, 2}
    assert outcomes[0][1] == [0, 1, 2]


def test_groups_overlap_nest_and_repeat_and_a_later_world_wide_group_still_works(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> bool:
        import torch.distributed as dist

        groups = {ranks: dist.new_group(list(ranks)) for ranks in [(0, 1), (1, 2, 3), (0, 1, 2), (3, 1)]}
        world = Gatherer(transport="gloo", timeout_s=30)
        for _ in range(50):
            for ranks, group in groups.items():
                if rank in ranks:
                    with Gatherer(transport="gloo", group=group, timeout_s=30) as gatherer:
                        members = gatherer.all_gather(rank)
                        if members != sorted(ranks) or gatherer.rank != sorted(ranks).index(rank):
                            return False
        late = dist.new_group(list(range(world_size)))
        dist.barrier(late)
        fine = world.all_gather(rank) == list(range(world_size))
        world.close()
        return fine

    assert pool.values(4, body, timeout_s=120) == [True] * 4


def test_a_rank_outside_the_group_gets_a_value_error_and_nobody_else_notices(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[int] | str:
        import torch.distributed as dist

        group = dist.new_group([0, 2])
        try:
            with Gatherer(transport="gloo", group=group, timeout_s=30) as gatherer:
                return gatherer.all_gather(rank)
        except ValueError as exc:
            return str(exc)

    outcomes = pool.values(3, body)
    assert outcomes[0] == outcomes[2] == [0, 2]
    assert "not in the group" in outcomes[1]


def test_the_last_answer_arrives_though_its_sender_exits_at_once(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> bool:
        import os

        gatherer = Gatherer(transport="gloo", timeout_s=10)
        parts = gatherer.all_gather(np.full(300_000, rank))
        if rank == 1:
            os._exit(0)
        return [int(part[-1]) for part in parts] == [0, 1, 2]

    outcomes = pool.run(3, body, expect_death=[1])
    assert [outcome.value for outcome in outcomes] == [True, None, True]


@pytest.mark.parametrize("transport", ["gloo", TWO_ROUNDS])
def test_random_sizes_on_all_ranks_stay_in_order(pool: RankPool, transport: str) -> None:
    def body(rank: int, world_size: int, transport: str) -> bool:
        rng = random.Random(7)
        with Gatherer(transport=transport, slot_nbytes=4096, timeout_s=30) as gatherer:
            for step in range(100):
                sizes = [rng.choice([0, 10, 3000, 5000, 70_000]) for _ in range(world_size)]
                parts = gatherer.all_gather((step, bytes([rank]) * sizes[rank]))
                if parts != [(step, bytes([r]) * sizes[r]) for r in range(world_size)]:
                    return False
        return True

    assert pool.values(4, body, transport) == [True] * 4


class QuickTransport(GlooTransport):
    """What `auto` would rather have."""

    name = "quick_in_test"

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if context.rank == 1:
            raise OSError("no room for it")
        super().open(context, slot_nbytes, timeout_s=timeout_s)


def test_where_auto_cannot_open_the_best_on_one_rank_all_take_the_next_and_say_why(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        order = (Candidate("quick_in_test", "anywhere"), Candidate("gloo", "anywhere"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(auto_choice, "AUTO_ORDER", order)
            patch.setattr(registry._transports, "registered", {"quick_in_test": QuickTransport})
            with Gatherer(timeout_s=30) as gatherer:
                assert gatherer.all_gather(rank) == list(range(world_size))
                return gatherer.describe()

    for text in pool.values(3, body):
        assert (
            "transport gloo (auto: gloo, the first that all 3 ranks can use; "
            "quick_in_test did not open: rank 1 could not set up: OSError: no room for it)"
        ) in text


def test_a_job_of_several_ranks_is_not_split_by_a_transport_for_one(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        with pytest.raises(SetupError) as raised:
            Gatherer.from_settings({"transport": "single" if rank == 1 else "auto"}, timeout_s=20)
        return str(raised.value)

    (text,) = set(pool.values(2, body))
    assert "transport 'single' is not available here: it serves one rank, the group has 2" in text
