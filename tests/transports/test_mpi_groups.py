"""Who gathers over MPI: the job that mpiexec started, communicators, and what becomes of their duplicates."""

from typing import Any

import pytest

from environment import variables
from gather_core import Gatherer, SettingsError, SetupError, TransportTimeoutError
from gather_transports.mpi import MpiTransport
from gather_transports.mpi_channel import Channel
from gather_transports.single import SingleTransport
from mpi_pool import MpiPools

pytest_plugins = ["mpi_fixture"]
DIRECT = "mpi:algorithm='direct'"


@pytest.mark.parametrize(
    ("host_of_rank", "said"),
    [
        ("aaa", "transport shm (auto: shm, as all 3 ranks are on one host)"),
        ("aba", "transport mpi (auto: mpi, the first that all 3 ranks can use)"),
    ],
)
def test_by_default_a_job_of_mpiexec_gathers_through_shared_memory_on_one_host_and_else_through_mpi(
    mpi_pools: MpiPools, host_of_rank: str, said: str
) -> None:
    def body(rank: int, world_size: int, host_of_rank: str) -> tuple[str, list[int]]:
        with variables(GATHER_HOST_ID=host_of_rank[rank]), Gatherer() as gatherer:
            return gatherer.describe(), gatherer.all_gather(rank)

    for rank, (text, gathered) in enumerate(mpi_pools(3).values(3, body, host_of_rank)):
        assert f"rank {rank} of 3" in text
        assert said in text
        assert gathered == [0, 1, 2]


@pytest.mark.parametrize(("host_of_rank", "chosen"), [("aaa", "shm"), ("aab", "mpi")])
def test_a_communicator_is_a_group_also_for_auto_and_others_take_no_part(
    mpi_pools: MpiPools, host_of_rank: str, chosen: str
) -> None:
    def body(rank: int, world_size: int, host_of_rank: str) -> Any:
        from mpi4py import MPI

        color = 0 if rank else MPI.UNDEFINED
        sub = MPI.COMM_WORLD.Split(color, key=-rank)  # ranks 2 and 1, in that order
        if rank == 0:
            with pytest.raises(ValueError, match="not in the communicator"):
                Gatherer(group=sub)
            return None
        with variables(GATHER_HOST_ID=host_of_rank[rank]), Gatherer(group=sub) as gatherer:
            mine = gatherer.rank, gatherer.all_gather(rank), gatherer.broadcast(f"of {rank}"), gatherer.transport.name
        context = MpiTransport.join(sub)
        sub.Free()
        return *mine, context.ranks

    expected = [2, 1], "of 2", chosen, (2, 1)
    assert mpi_pools(3).values(3, body, host_of_rank) == [None, (1, *expected), (0, *expected)]


def test_groups_that_overlap_and_several_gatherers_do_not_cross(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> None:
        from mpi4py import MPI

        world = [Gatherer(transport="mpi"), Gatherer(transport=DIRECT)]
        pair = MPI.COMM_WORLD.Split(0 if rank < 2 else 1)
        inner = Gatherer(transport="mpi", group=pair)
        for number in range(20):
            order = world if number % 2 else world[::-1]
            assert [g.all_gather((number, rank, i)) for i, g in enumerate(order)] == [
                [(number, r, i) for r in range(3)] for i in range(2)
            ]
            assert inner.all_gather(rank) == ([0, 1] if rank < 2 else [2])
            assert MPI.COMM_WORLD.allreduce(1) == 3, "the job's own communicator is not touched"
        for gatherer in (*world, inner):
            gatherer.close()
        pair.Free()

    mpi_pools(3).values(3, body)


def test_gatherers_of_a_communicator_use_the_same_duplicates_again(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> tuple[int, int]:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD.Dup()
        group: Any = MpiTransport.join(comm).process_group
        for _ in range(5):
            with Gatherer(transport="mpi", group=comm) as first, Gatherer(transport="mpi", group=comm) as second:
                assert first.all_gather(rank) == second.all_gather(rank) == [0, 1]
        after_good_ones = group._num_channels
        broken = Gatherer(transport="mpi", group=comm)
        if rank == 0:
            with pytest.raises(TransportTimeoutError):
                broken.all_gather(0, timeout_s=0.1)
        MPI.COMM_WORLD.Barrier()
        broken.close()
        for _ in range(5):
            with Gatherer(transport="mpi", group=comm) as first, Gatherer(transport="mpi", group=comm) as second:
                assert first.all_gather(rank) == second.all_gather(rank) == [0, 1]
        return after_good_ones, group._num_channels

    # Its own, and two for Gatherers; one more for the one that is never used again.
    assert mpi_pools(2).values(2, body) == [(3, 4)] * 2


def test_a_duplicate_on_which_ranks_have_made_different_numbers_of_calls_is_not_used_again(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> bool:
        gatherer = Gatherer(transport="mpi")
        transport: Any = gatherer.transport
        used = transport._channel
        used.num_calls += rank
        gatherer.close()
        with Gatherer(transport="mpi") as another:
            assert another.all_gather(rank) == [0, 1]
            transport = another.transport
            return bool(used.index == transport._channel.index)

    assert mpi_pools(2).values(2, body) == [False, False]


def test_a_duplicate_on_which_not_all_ranks_have_prepared_is_not_used_again(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> bool:
        from mpi4py import MPI

        used: list[int] = []

        class Failing:
            def __init__(self, comm: Any) -> None:
                self.comm = comm

            def __getattr__(self, name: str) -> Any:
                return getattr(self.comm, name)

            def Allgather_init(self, *_: Any) -> None:  # noqa: N802
                raise MPI.Exception(MPI.ERR_OTHER)

        def failing(channel: Any, own: memoryview, rows: memoryview) -> Any:
            used.append(channel.index)
            if rank == 1:
                channel.comm = Failing(channel.comm)
            return prepare(channel, own, rows)

        prepare = Channel.prepare_all_gather
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Channel, "prepare_all_gather", failing)
            with pytest.raises(SetupError, match="rank 1 could not set up: PeerLostError: MPI failed"):
                Gatherer(transport="mpi")
        with Gatherer(transport="mpi") as another:
            assert another.all_gather(rank) == [0, 1]
            transport: Any = another.transport
            return bool(transport._channel.index in used)

    assert mpi_pools(2).values(2, body) == [False, False]


def test_a_rank_that_never_comes_to_the_first_gatherer_of_a_communicator_is_a_setup_error(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> list[str]:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD.Dup()
        texts = []
        if rank == 0:
            for _ in range(2):
                with pytest.raises(SetupError) as raised:
                    Gatherer(transport="mpi", group=comm, timeout_s=0.3)
                texts.append(str(raised.value))
        MPI.COMM_WORLD.Barrier()
        return texts

    first, second = mpi_pools(2).values(2, body)[0]
    assert "not all ranks of the communicator came to the first Gatherer on it" in first
    assert "an earlier construction on this communicator failed: not all ranks" in second


def test_a_rank_that_never_comes_to_a_later_one_is_named_and_the_communicator_stays_usable(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> str:
        from mpi4py import MPI

        text = ""
        Gatherer(transport="mpi").close()
        if rank != 2:
            with pytest.raises(SetupError) as raised:
                Gatherer(transport="mpi", timeout_s=0.3)
            text = str(raised.value)
        MPI.COMM_WORLD.Barrier()
        with Gatherer(transport="mpi") as gatherer:
            assert gatherer.all_gather(rank) == [0, 1, 2]
        return text

    texts = mpi_pools(3).values(3, body)
    assert texts[0] == texts[1] == "rank 2 could not set up: never came: nothing heard within 0.3 s"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"transport": "mip"}, "no transport is named 'mip'"),
        ({"slot_nbytes": 5}, "slot_nbytes"),
        ({"transport": DIRECT}, "transport is"),
        ({"transport": "mpi:algorithm='ring'"}, "algorithm must be"),
    ],
)
def test_what_is_wrong_on_one_rank_is_raised_on_all(mpi_pools: MpiPools, wrong: dict[str, Any], text: str) -> None:
    def body(rank: int, world_size: int, wrong: dict[str, Any]) -> str:
        with pytest.raises(SetupError) as raised:
            Gatherer(**({"transport": "mpi"} | (wrong if rank == 2 else {})))
        return str(raised.value)

    texts = mpi_pools(3).values(3, body, wrong)
    assert texts == [texts[0]] * 3
    assert texts[0].startswith("rank 2 could not set up")
    assert text in texts[0]


def test_what_is_no_communicator_is_refused(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> list[str]:
        from mpi4py import MPI

        own: Any = MPI.COMM_WORLD.Split(rank)
        intercommunicator = own.Create_intercomm(0, MPI.COMM_WORLD, 1 - rank)
        texts = []
        for transport, group in (("mpi", "world"), ("mpi", intercommunicator), ("auto", intercommunicator)):
            with pytest.raises(TypeError) as raised:
                Gatherer(transport=transport, group=group)
            texts.append(str(raised.value))
        intercommunicator.Free()
        own.Free()
        return texts

    rule = "group must be an mpi4py intracommunicator or None, not "
    assert mpi_pools(2).values(2, body) == [[rule + "str", rule + "Intercomm", rule + "Intercomm"]] * 2


def test_an_mpi_that_threads_may_not_call_is_refused(mpi_pools: MpiPools) -> None:
    def body(rank: int, world_size: int) -> str:
        from mpi4py import MPI

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_SERIALIZED)
            with pytest.raises(SettingsError) as raised:
                Gatherer(transport="mpi")
        return str(raised.value)

    assert "without MPI_THREAD_MULTIPLE" in mpi_pools(2).values(2, body)[0]


def test_it_needs_mpi4py_and_a_communicator(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SingleTransport.join(None)
    assert MpiTransport.unavailable(alone) == "its group is no MPI communicator"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'gather-core[mpi]'" in str(MpiTransport.unavailable(None))
    with pytest.raises(SettingsError, match="mpi4py is not installed"):
        Gatherer(transport="mpi")
