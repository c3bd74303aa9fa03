"""Every operation over real processes, on the transports that jobs use."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from environment import variables
from gather_core import Gatherer, RemoteEncodeError, TransportTimeoutError
from rank_pool import RankPool
from thread_gatherers import caught

TWO_ROUNDS = "gloo:hub_up_to_nbytes=0,all_to_all_up_to_nbytes=0,chunk_nbytes=4096"
PLAIN, KEY = None, bytes(32)


@pytest.mark.parametrize(
    ("transport", "codec", "key"),
    [
        pytest.param("gloo", "pickle", PLAIN, id="gloo"),
        pytest.param("gloo", "msgpack+zstd", KEY, id="gloo-sealed"),
        pytest.param(TWO_ROUNDS, "msgpack", PLAIN, id="gloo-in-two-rounds"),
        pytest.param(TWO_ROUNDS, "pickle", KEY, id="gloo-in-two-rounds-sealed"),
        pytest.param("shm", "pickle", PLAIN, id="shm"),
        pytest.param("shm", "pickle+zstd", KEY, id="shm-sealed"),
        pytest.param("shm+gloo", "pickle", PLAIN, id="shm+gloo"),
        pytest.param("all_gather_object", "pickle", PLAIN, id="all_gather_object"),
    ],
)
def test_every_operation_gives_every_rank_what_it_promises(
    pool: RankPool, transport: str, codec: str, key: bytes | None
) -> None:
    def body(rank: int, world_size: int) -> None:
        def of(src: int, dst: int, length: int) -> Any:
            return {"array": np.full(length, 10 * src + dst), "tensor": torch.full((length,), src), "text": f"{src}"}

        def check(obj: Any, src: int, dst: int, length: int) -> None:
            expected = of(src, dst, length)
            assert obj["text"] == expected["text"]
            np.testing.assert_array_equal(obj["array"], expected["array"])
            assert torch.equal(obj["tensor"], expected["tensor"])

        # Two hosts, where there is more than one way between ranks.
        with variables(**({"GATHER_HOST_ID": f"host-{rank // 2}"} if "+" in transport else {})):
            gatherer = Gatherer(codec, transport, timeout_s=60, key=key, slot_nbytes=4096)
        with gatherer:
            for length in (1, 100 * (rank + 1), 40_000):
                mine = [of(rank, dst, length) for dst in range(world_size)]
                lengths = gatherer.all_gather(length, confirm=True)
                for src, obj in enumerate(gatherer.all_to_all(mine, confirm=True)):
                    check(obj, src, rank, lengths[src])
                check(gatherer.scatter(mine if rank == 1 else None, src=1), 1, rank, lengths[1])
                for src, obj in enumerate(gatherer.all_gather(of(rank, 0, length), lazy=True)):
                    check(obj, src, 0, lengths[src])
            assert gatherer.reduce({"rank": rank, "x": np.arange(3)}, "mean")["rank"] == (world_size - 1) / 2
            gatherer.barrier(tag="middle")
            counts = [0] * world_size
            for src, obj in gatherer.iter_gather(
                (of(rank, number, 200) for number in range(5 + rank)), dst=1, budget_nbytes=20_000
            ):
                check(obj, src, counts[src], 200)
                counts[src] += 1
            assert counts == ([5 + src for src in range(world_size)] if rank == 1 else [0] * world_size)
            if transport != "all_gather_object":
                futures = [gatherer.all_gather_async(of(rank, number, 3000)) for number in range(3)]
                assert gatherer.all_gather("behind them") == ["behind them"] * world_size
                for number, future in enumerate(futures):
                    for src, obj in enumerate(future.result(0)):
                        check(obj, src, number, 3000)
            gatherer.stats.is_recording = True
            gatherer.all_gather(0)
            assert gatherer.gather_stats().rows()[0]["operations"] == 1

    pool.values(4, body)


@pytest.mark.parametrize("transport", ["gloo", "shm"])
def test_a_barrier_names_who_is_missing(pool: RankPool, transport: str) -> None:
    def body(rank: int, world_size: int) -> Any:
        with Gatherer(transport=transport, timeout_s=60) as gatherer:
            if rank == 1:
                gatherer.all_gather("first")
                time.sleep(2.5)  # rank 1 is late
                return None
            gatherer.all_gather("first")
            error = caught(lambda: gatherer.barrier(timeout_s=1, tag="epoch"))
            return str(error), error.behind if isinstance(error, TransportTimeoutError) else type(error).__name__

    outcomes = pool.values(3, body)
    found = {behind for _, behind in (outcomes[0], outcomes[2])}
    assert (1,) in found
    assert found <= {(1,), "AbortedError"}  # of the other one, where that gave up a moment before
    for text, _ in (outcomes[0], outcomes[2]):
        assert "rank 1 never entered barrier #2 'epoch'" in text


MIB = 1 << 20


@pytest.mark.parametrize("transport", ["gloo", "shm"])
@pytest.mark.parametrize(
    ("total_nbytes", "budget_nbytes"),
    [
        pytest.param(64 * MIB, 8 * MIB, id="64 MiB through 8 MiB"),
        pytest.param(1024 * MIB, 64 * MIB, id="1 GiB through 64 MiB", marks=pytest.mark.slow),
    ],
)
def test_a_stream_keeps_to_its_budget(pool: RankPool, transport: str, total_nbytes: int, budget_nbytes: int) -> None:
    def body(rank: int, world_size: int, transport: str, total_nbytes: int, budget_nbytes: int) -> tuple[int, int]:
        from gather_bench.resident import peak_above_before

        item_nbytes = 1 << 20
        num_items = total_nbytes // item_nbytes // world_size
        received = [0] * world_size

        def items() -> Iterator[Any]:
            for number in range(num_items):
                yield np.full(item_nbytes // 8, number)

        def stream() -> None:
            for source, array in gatherer.iter_gather(items(), dst=0, budget_nbytes=budget_nbytes):
                assert array[0] == array[-1] == received[source]
                received[source] += 1

        with Gatherer(transport=transport, timeout_s=300) as gatherer:
            peak_nbytes = peak_above_before(stream)
        assert received == [num_items if rank == 0 else 0] * world_size
        assert peak_nbytes is not None
        return peak_nbytes, budget_nbytes

    # Of its share, a rank has the chunk, its slots, and what has come; all of the others' on the one that receives.
    for peak_nbytes, budget in pool.values(2, body, transport, total_nbytes, budget_nbytes, timeout_s=600):
        assert peak_nbytes < 3 * budget


def test_an_error_in_the_background_leaves_the_ranks_in_step(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        with Gatherer(transport="shm", timeout_s=60) as gatherer:
            bad = gatherer.all_gather_async((lambda: None) if rank == 1 else 0)
            good = gatherer.all_gather_async(rank)
            error = bad.exception()
            assert isinstance(error, RemoteEncodeError)
            return list(error.failures), good.result()

    assert pool.values(2, body) == [([1], [0, 1])] * 2
