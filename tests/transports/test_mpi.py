"""What is special to the MPI transport: how operations go and fail over collectives that nothing can cancel."""

import contextlib
import os
import signal
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

from gather_core import (
    AbortedError,
    ClosedError,
    Deadline,
    Gatherer,
    GroupBrokenError,
    ProtocolError,
    RemoteCallError,
    RemoteEncodeError,
    SlotOverflowError,
    TransportError,
    TransportTimeoutError,
)
from gather_transports import mpi_channel
from gather_transports.mpi import MpiTransport
from mpi_pool import MpiPools

pytest_plugins = ["mpi_fixture"]
DIRECT = "mpi:algorithm='direct'"


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("transport", ["mpi", DIRECT, "mpi:chunk_nbytes=100000"])
def test_every_operation_returns_objects_of_any_size(mpi_pools: MpiPools, world_size: int, transport: str) -> None:
    def body(rank: int, world_size: int, transport: str) -> None:
        with Gatherer(transport=transport) as gatherer:
            for length in (1, 100, 118, 119, 2000, 2040, 2100, 40_000):  # around a row, and a slot
                everyone = [np.full(length + r, r) for r in range(world_size)]
                same(gatherer.all_gather(everyone[rank]), everyone)
                gathered = gatherer.gather(everyone[rank], dst=1)
                assert (gathered is None) == (rank != 1)
                same(gathered or [], everyone if rank == 1 else [])
                same([gatherer.broadcast(everyone[rank], src=world_size - 1)], everyone[-1:])
                same(gatherer.run(np.full, length, rank), [np.full(length, r) for r in range(world_size)])
            mixed = gatherer.all_gather(b"x" * (300_000 if rank == 1 else 3))
            assert [len(each) for each in mixed] == [300_000 if r == 1 else 3 for r in range(world_size)]

    def same(got: list[Any], expected: list[Any]) -> None:
        assert len(got) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))

    mpi_pools(world_size).values(world_size, body, transport)


def test_an_exchange_is_prepared_once_and_freed_at_the_end_where_mpi_does_that_without_waiting(
    mpi_pools: MpiPools,
) -> None:
    def body(rank: int, world_size: int) -> None:
        from mpi4py import MPI

        gatherer = Gatherer(transport="mpi")
        prepared = prepared_by(gatherer)
        assert gatherer.all_gather(rank) == gatherer.all_gather(rank) == [0, 1]
        assert prepared_by(gatherer) is prepared
        gatherer.close()
        assert prepared == MPI.REQUEST_NULL
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(mpi_channel, "_PREPARE_ALONE", frozenset())
            with Gatherer(transport="mpi") as gatherer:
                assert prepared_by(gatherer) is None
                assert gatherer.all_gather([rank] * 1000) == [[0] * 1000, [1] * 1000]
                assert gatherer.all_gather(rank) == [0, 1]

    def prepared_by(gatherer: Gatherer) -> Any:
        transport: Any = gatherer.transport
        return transport._prepared

    mpi_pools(2).values(2, body)


def test_a_rank_that_cannot_encode_fails_every_rank_and_leaves_the_group_usable(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> None:
        with Gatherer(transport="mpi") as gatherer:
            with pytest.raises(RemoteEncodeError) as raised:
                gatherer.all_gather(threading.Lock() if rank == 1 else 0)
            assert list(raised.value.failures) == [1]
            with pytest.raises(RemoteCallError, match="ZeroDivisionError"):
                gatherer.run(lambda: 1 // (rank - 1))
            assert gatherer.all_gather(rank) == list(range(world_size))

    mpi_pools(3).values(3, body)


def test_an_object_larger_than_the_slot_is_an_error_on_every_rank_where_that_is_asked_for(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> None:
        with Gatherer(transport="mpi", overflow="error", slot_nbytes=4096) as gatherer:
            with pytest.raises(SlotOverflowError, match="rank 0"):
                gatherer.all_gather(b"x" * (5000 if rank == 0 else 1))
            assert gatherer.all_gather(b"x" * 3000) == [b"x" * 3000] * world_size

    mpi_pools(2).values(2, body)


def test_leaving_the_block_by_an_exception_reaches_the_ranks_that_wait_and_names_the_rank(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> str:
        try:
            with Gatherer(transport="mpi", timeout_s=60) as gatherer:
                if rank == 2:
                    raise ValueError("out of paper")
                gatherer.all_gather(rank)
        except (AbortedError, ValueError) as exc:
            return str(exc)
        return "no error"

    assert mpi_pools(3).values(3, body, timeout_s=30) == [
        "rank 2 aborted: ValueError: out of paper",
        "rank 2 aborted: ValueError: out of paper",
        "out of paper",
    ]


@pytest.mark.parametrize("length", [1, 100_000])
def test_a_rank_that_never_comes_is_named_at_the_deadline_and_a_new_gatherer_works(
    mpi_pools: MpiPools, length: int
) -> None:
    def body(rank: int, world_size: int, length: int) -> str:
        gatherer = Gatherer(transport="mpi", timeout_s=30)
        text = ""
        gatherer.all_gather(b"before", tag="first")
        if rank != 1:
            with pytest.raises((TransportTimeoutError, AbortedError)) as raised:  # of this rank, or of the other late
                gatherer.all_gather(b"x" * length, tag="second", timeout_s=0.3)
            with pytest.raises(GroupBrokenError):
                gatherer.all_gather(0)
            text = str(raised.value)
        with Gatherer(transport="mpi", timeout_s=30) as another:
            assert another.all_gather(rank) == [0, 1, 2]
            gatherer.close()
            assert another.all_gather(b"x" * length) == [b"x" * length] * 3
        return text

    texts = mpi_pools(3).values(3, body, length)
    for rank, text in enumerate(texts):
        never_entered = "rank 1 never entered all_gather #2 'second' (it is at #1 'first')"
        assert (never_entered in text) is (rank != 1)


def test_a_wait_can_be_interrupted(mpi_pools: MpiPools) -> None:
    def interrupted(gatherer: Gatherer) -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        gatherer.all_gather(0)

    def forever(gatherer: Gatherer) -> None:
        while True:  # the first may still succeed: what rank 0 had sent has arrived
            gatherer.all_gather(0)

    def body(rank: int, world_size: int) -> None:
        with Gatherer(transport="mpi", timeout_s=60) as gatherer:
            if rank == 0:
                with pytest.raises(KeyboardInterrupt):
                    interrupted(gatherer)
                barrier()
            else:
                barrier()
                with pytest.raises(AbortedError, match="rank 0 aborted: KeyboardInterrupt"):
                    forever(gatherer)

    def barrier() -> None:
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()

    mpi_pools(2).values(2, body)


def test_a_rank_that_waits_leaves_the_cores_to_others(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> float:
        with Gatherer(transport="mpi") as gatherer:
            gatherer.all_gather(0)
            used = time.process_time()
            if rank == 0:
                time.sleep(2)
            gatherer.all_gather(0)
            return time.process_time() - used

    assert max(mpi_pools(2).values(2, body)) < 0.5  # a busy wait takes 2 s


def test_a_forked_child_cannot_use_it_and_closing_there_harms_nobody(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> list[int]:
        gatherer = Gatherer(transport="mpi")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                gatherer.close()
                gatherer.transport.abort("not from here")
                Gatherer(transport="mpi")
            except ClosedError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        with gatherer:
            return gatherer.all_gather(rank)

    assert mpi_pools(2).values(2, body) == [[0, 1]] * 2


def test_a_child_that_is_forked_inside_an_operation_takes_no_part_in_it(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> list[int]:
        children: list[int] = []

        class Forks:
            def __reduce__(self) -> tuple[type[int], tuple[int]]:
                children.append(os.fork())
                return int, (rank,)

        gatherer = Gatherer(transport="mpi")
        status = 1
        try:
            everyone: list[Any] = gatherer.all_gather(Forks())
        except ClosedError:
            status = 0
        finally:
            if children == [0]:
                os._exit(status)
        assert os.waitpid(children[0], 0)[1] == 0
        with gatherer:
            return everyone + gatherer.all_gather(rank)

    assert mpi_pools(2).values(2, body) == [[0, 1, 0, 1]] * 2


def test_a_length_that_no_slot_has_is_a_protocol_error_and_ends_the_transport(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> None:
        gatherer = Gatherer(transport="mpi", slot_nbytes=1024)
        transport: Any = gatherer.transport
        with pytest.raises(ProtocolError, match=f"a rank claims to fill {1 << 40} of the 1088 bytes of its slot"):
            transport.all_gather_slots(1 << 40 if rank == 1 else 64, timeout_s=10)
        with pytest.raises(TransportError, match="an earlier exchange failed"):
            transport.all_gather_slots(64, timeout_s=10)

    mpi_pools(2).values(2, body)


def test_an_error_of_mpi_is_a_lost_peer_and_ends_the_transport(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> str:
        from mpi4py import MPI

        class Failing:
            def Test(self) -> bool:  # noqa: N802
                raise MPI.Exception(MPI.ERR_OTHER)

        gatherer = Gatherer(transport="mpi", timeout_s=20)
        transport: Any = gatherer.transport
        transport._start_rows = lambda: [Failing()]
        with pytest.raises(TransportError) as raised:
            gatherer.all_gather(0)
        assert not transport._channel.is_clean
        return f"{type(raised.value).__name__}: {raised.value}"

    assert all("MPI" in text or "aborted" in text for text in mpi_pools(2).values(2, body))


def test_the_memory_of_a_collective_that_was_given_up_is_never_freed(mpi_pools: MpiPools) -> None:
    def memory_lives(timeout_s: float) -> bool:
        gatherer = Gatherer(transport="mpi", timeout_s=20)
        transport = gatherer.transport
        arrays = [np.zeros(300_000, np.uint8) for _ in range(2)]
        last = weakref.ref(arrays[1])
        into: list[memoryview] = [array.data for array in arrays]
        with contextlib.suppress(TransportTimeoutError):
            transport.all_gather_exact([memoryview(bytes(300_000))], [300_000] * 2, into=into, timeout_s=timeout_s)
        gatherer.close()
        into.clear()
        arrays.clear()
        return last() is not None

    def body(rank: int, world_size: int) -> tuple[bool, bool]:
        from mpi4py import MPI

        after_success = memory_lives(20)
        if rank == 1:
            Gatherer(transport="mpi", timeout_s=20)
        lives = rank == 0 and memory_lives(0.1)
        MPI.COMM_WORLD.Barrier()
        return after_success, lives

    assert mpi_pools(2).values(2, body) == [(False, True), (False, False)]


@pytest.mark.parametrize("verb", ["all_gather_exact", "all_to_all_exact"])
def test_each_chunk_of_round_2_renews_the_deadline(mpi_pools: MpiPools, verb: str) -> None:
    def body(rank: int, world_size: int, verb: str) -> int:
        from gather_transports import mpi

        renewed = []

        class Recording(Deadline):
            def renew(self) -> None:
                renewed.append(self.remaining_s())
                super().renew()

        into = [memoryview(bytearray(5000)) for _ in range(2)]
        part = memoryview(bytes([rank + 1]) * 5000)
        gatherer = Gatherer(transport="mpi:chunk_nbytes=1000")
        with gatherer, pytest.MonkeyPatch.context() as patch:
            patch.setattr(mpi, "Deadline", Recording)
            if verb == "all_gather_exact":
                gatherer.transport.all_gather_exact([part], [5000] * 2, into=into, timeout_s=10)
            else:
                gatherer.transport.all_to_all_exact([[part]] * 2, [[5000] * 2] * 2, into=into, timeout_s=10)
        assert [bytes(view) for view in into] == [b"\1" * 5000, b"\2" * 5000]
        return len(renewed)

    assert mpi_pools(2).values(2, body, verb) == [5, 5]


@pytest.mark.parametrize("options", [{"algorithm": "ring"}, {"chunk_nbytes": 0}, {"chunk_nbytes": 1 << 31}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MpiTransport(**options)
