"""What goes wrong on one rank reaches all of them, over real processes and Gloo."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gather_core import (
    AbortedError,
    ClosedError,
    DesyncError,
    Gatherer,
    GroupBrokenError,
    PeerLostError,
    RemoteCallError,
    RemoteEncodeError,
    SettingsError,
    SetupError,
    TransportError,
    TransportTimeoutError,
)
from rank_pool import RankOutcome, RankPool, reached, store_address
from store_calls import store_calls


def errors_of(outcomes: Sequence[RankOutcome]) -> list[type[BaseException | None]]:
    return [type(outcome.error) for outcome in outcomes]


def test_what_fails_on_one_rank_before_the_exchange_is_raised_on_all_and_the_group_goes_on(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        seen: list[Any] = []
        with Gatherer(transport="gloo", timeout_s=20) as gatherer:
            for call in (
                lambda: gatherer.all_gather((lambda: 0) if rank == 1 else 0),
                lambda: gatherer.gather(0, dst=9 if rank == 1 else 0),
                lambda: gatherer.broadcast(0, src=-1 if rank == 1 else 0),
                lambda: gatherer.all_gather(0, tag=5 if rank == 1 else "x"),  # type: ignore[arg-type]
                lambda: gatherer.all_gather(0, timeout_s=-1 if rank == 1 else 5),
                lambda: gatherer.run(lambda: 1 // (rank - 1)),
            ):
                with pytest.raises((RemoteEncodeError, RemoteCallError)) as caught:
                    call()
                seen.append((list(caught.value.failures), type(caught.value), caught.value.__cause__ is not None))
            seen.append(gatherer.all_gather(rank))
        return seen

    for rank, seen in enumerate(pool.values(3, body)):
        assert seen == [*[([1], RemoteEncodeError, rank == 1)] * 5, ([1], RemoteCallError, rank == 1), [0, 1, 2]]


def test_the_original_traceback_travels(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        def fails_here() -> None:
            raise ZeroDivisionError("my message")

        with Gatherer(transport="gloo", timeout_s=20) as gatherer, pytest.raises(RemoteCallError) as caught:
            gatherer.run(fails_here if rank == 0 else int)
        return str(caught.value)

    for text in pool.values(2, body):
        assert "rank 0 raised in run(): ZeroDivisionError: my message" in text
        assert "in fails_here" in text


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"slot_nbytes": -1}, "slot_nbytes must be an int of at least 1024, not -1"),
        ({"slot_nbytes": 4096}, "slot_nbytes is 4096, but ranks 0, 2 have 16384"),
        ({"codec": "msgpack"}, 'codec is "msgpack", but ranks 0, 2 have "pickle"'),
        ({"codec": "pikle"}, "Did you mean 'pickle'"),
        ({"codec": "pickle:level=3"}, "it takes: no options"),
        ({"overflow": "ignore"}, "overflow must be"),
        ({"overflow": "error"}, "overflow is"),
        ({"timeout_s": "soon"}, "timeout_s must be seconds"),
        ({"transport": "gloo:chunk_nbytes=5"}, "transport is"),
        ({"transport": "carrier_pigeon"}, "no transport is named"),
    ],
)
def test_a_rank_with_bad_or_other_settings_fails_the_construction_of_all(
    pool: RankPool, bad: dict[str, Any], message: str
) -> None:
    def body(rank: int, world_size: int, bad: dict[str, Any]) -> None:
        Gatherer(**{"transport": "gloo", "timeout_s": 20, **(bad if rank == 1 else {})})

    outcomes = pool.run(3, body, bad)
    assert errors_of(outcomes) == [SetupError] * 3
    for outcome in outcomes:
        assert isinstance(outcome.error, SetupError)
        assert list(outcome.error.failures) == [1]
        assert message in str(outcome.error)
        assert outcome.seconds < 10


def test_a_rank_that_never_constructs_is_named_at_the_deadline(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        if rank != 1:
            Gatherer(transport="gloo", timeout_s=1)

    outcomes = pool.run(3, body)
    for outcome in (outcomes[0], outcomes[2]):
        assert isinstance(outcome.error, SetupError)
        assert list(outcome.error.failures) == [1]
        assert outcome.seconds < 4


def test_leaving_the_with_block_by_an_exception_ends_the_others_at_once(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        with Gatherer(transport="gloo", timeout_s=50) as gatherer:
            gatherer.all_gather(0)
            if rank == 1:
                raise ValueError("boom")
            gatherer.all_gather(1)

    outcomes = pool.run(3, body)
    assert errors_of(outcomes) == [AbortedError, ValueError, AbortedError]
    for outcome in (outcomes[0], outcomes[2]):
        assert "rank 1 aborted: ValueError: boom" in str(outcome.error)
        assert outcome.seconds < 10


@pytest.mark.parametrize("slot_nbytes", [16384, 1 << 20])
def test_a_late_rank_is_named_with_where_it_is(pool: RankPool, slot_nbytes: int) -> None:
    def body(rank: int, world_size: int) -> str:
        with Gatherer(transport="gloo", timeout_s=1, slot_nbytes=slot_nbytes) as gatherer:
            gatherer.all_gather(0, tag="train")
            if rank == 1:
                time.sleep(4)
            with pytest.raises(TransportError) as caught:
                gatherer.all_gather(0, tag="val")
            with pytest.raises(GroupBrokenError):
                gatherer.all_gather(0)
            return str(caught.value)

    outcomes = pool.run(3, body)
    for outcome in outcomes:
        assert "rank 1 never entered all_gather #2 'val' (it is at #1 'train')" in outcome.value
    assert max(outcomes[0].seconds, outcomes[2].seconds) < 4


def test_another_operation_or_tag_is_a_desync_on_every_rank(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        with Gatherer(transport="gloo", timeout_s=20) as gatherer:
            if rank == 1:
                gatherer.gather(0)
            else:
                gatherer.all_gather(0, tag="loss")

    outcomes = pool.run(3, body)
    assert errors_of(outcomes) == [DesyncError] * 3
    assert "rank 1 never entered all_gather #1 'loss' (it is in gather #1, round 1)" in str(outcomes[0].error)


def test_two_gatherers_in_crossed_order_neither_mix_nor_hang(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        first, second = (Gatherer(transport="gloo", timeout_s=1) for _ in range(2))
        with pytest.raises(TransportError) as caught:
            (second if rank == 1 else first).all_gather(rank)
        first.close()
        second.close()
        return str(caught.value)

    outcomes = pool.run(3, body)
    assert "rank 1 never entered all_gather #1 (it has called nothing yet)" in outcomes[0].value
    assert max(outcome.seconds for outcome in outcomes) < 8


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("point", ["before", "in round 1", "in round 2"])
def test_a_killed_rank_ends_the_others_within_the_timeout_and_is_named(pool: RankPool, victim: int, point: str) -> None:
    def body(rank: int, world_size: int, victim: int, point: str) -> None:
        gatherer = Gatherer(transport="gloo", timeout_s=10)
        gatherer.all_gather(0)
        if rank == victim and point == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 2 and point != "before":
            come_late(gatherer, "all_gather_slots" if point == "in round 1" else "all_gather_exact")
        gatherer.all_gather(bytes(32 << 20))

    running = pool.start(3, body, victim, point)
    if point != "before":
        running.wait_for(2, "waits")
        os.kill(running.pid(victim), signal.SIGKILL)
    outcomes = running.wait()
    assert outcomes[victim].exitcode == -signal.SIGKILL
    for outcome in (outcomes[1 - victim], outcomes[2]):
        assert isinstance(outcome.error, PeerLostError | AbortedError)
        assert f"rank {victim}" in str(outcome.error)
        assert outcome.seconds < 12


def come_late(gatherer: Gatherer, verb: str) -> None:
    """Makes this rank wait a second before its next call of a verb of the transport, and say so."""
    transport: Any = gatherer.transport
    call = getattr(transport, verb)

    def late(*args: Any, **options: Any) -> Any:
        reached("waits")
        time.sleep(1)
        return call(*args, **options)

    setattr(transport, verb, late)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("verb", ["all_gather_slots", "all_gather_exact"])
def test_ctrl_c_on_one_rank_interrupts_it_and_ends_the_others(pool: RankPool, victim: int, verb: str) -> None:
    def body(rank: int, world_size: int, verb: str) -> None:
        with Gatherer(transport="gloo", timeout_s=50) as gatherer:
            gatherer.all_gather(0)
            if rank == 2:
                come_late(gatherer, verb)
            gatherer.all_gather(bytes(32 << 20))

    running = pool.start(3, body, verb)
    running.wait_for(2, "waits")
    os.kill(running.pid(victim), signal.SIGINT)
    outcomes = running.wait()
    assert isinstance(outcomes[victim].error, KeyboardInterrupt)
    for outcome in (outcomes[1 - victim], outcomes[2]):
        assert isinstance(outcome.error, AbortedError)
        assert outcome.error.rank == victim
        assert f"rank {victim} aborted: KeyboardInterrupt" in str(outcome.error)
        assert outcome.seconds < 10


def test_a_stopped_rank_is_reported_as_silent(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        gatherer = Gatherer(transport="gloo", timeout_s=2)
        gatherer.all_gather(0)
        reached("in")
        if rank == 1:
            time.sleep(1)
        gatherer.all_gather(1)
        gatherer.all_gather(2)  # the one before may still have succeeded on the rank that was stopped

    running = pool.start(2, body)
    running.wait_for(1, "in")
    os.kill(running.pid(1), signal.SIGSTOP)
    running.wait_for(0, "in")
    deadline = time.monotonic() + 10
    while 0 not in running.finished() and time.monotonic() < deadline:
        running.poll()
    os.kill(running.pid(1), signal.SIGCONT)
    outcomes = running.wait()
    assert isinstance(outcomes[0].error, TransportTimeoutError)
    assert outcomes[0].error.missing == (1,)
    assert isinstance(outcomes[1].error, TransportError)


def test_a_rank_that_stops_inside_round_2_is_missed_by_name_operation_and_tag(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        gatherer = Gatherer(transport="gloo", timeout_s=2)
        gatherer.all_gather(0, tag="train")
        if rank == 1:
            stop_before(gatherer, "all_gather_exact")
        gatherer.all_gather(bytes(8 << 20), tag="val")

    running = pool.start(3, body)
    deadline = time.monotonic() + 20
    while not {0, 2} <= running.finished() and time.monotonic() < deadline:
        running.poll()
    os.kill(running.pid(1), signal.SIGCONT)
    outcomes = running.wait()
    errors = [outcomes[rank].error for rank in (0, 2)]
    assert any(isinstance(error, TransportTimeoutError) for error in errors), errors
    for error in errors:
        assert isinstance(error, TransportTimeoutError | AbortedError)
        assert "all_gather #2 'val', round 2: " in str(error)
        assert "no sign of life from rank 1" in str(error)
        if isinstance(error, TransportTimeoutError):
            assert (error.missing, error.behind) == ((1,), ())
    assert isinstance(outcomes[1].error, TransportError)


def stop_before(gatherer: Gatherer, verb: str) -> None:
    """Makes this rank stop, as by SIGSTOP, before its next call of a verb of the transport."""
    transport: Any = gatherer.transport
    call = getattr(transport, verb)

    def stopped(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return call(*args, **options)

    setattr(transport, verb, stopped)


def test_a_healthy_run_asks_and_tells_the_store_nothing(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[str]:

        with Gatherer(transport="gloo", timeout_s=20) as gatherer:
            gatherer.all_gather(0)
            with store_calls() as calls:
                for step in range(5):
                    gatherer.all_gather(bytes((1 << 20) * step), tag="x")
            gatherer.all_gather(1)
            return list(calls)

    assert pool.values(2, body) == [[], []]


def init_with_the_store_on_rank_0(rank: int, world_size: int) -> None:
    """For bodies without a process group: makes one whose store dies or stops with rank 0."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    meeting = TCPStore(*store_address(), None, False, wait_for_workers=False)
    if rank == 0:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        store = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())
        meeting.set("port", str(port))
    else:
        store = TCPStore("127.0.0.1", int(meeting.get("port")), None, False, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))


def wait_until_stopped(pid: int, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.fault(42)
def test_where_the_killed_rank_held_the_store_it_alone_is_lost(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        init_with_the_store_on_rank_0(rank, world_size)
        gatherer = Gatherer(transport="gloo", timeout_s=10)
        gatherer.all_gather(0)
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        gatherer.all_gather(1)

    for outcome in pool.run(3, body, init=False, expect_death=[0])[1:]:
        assert isinstance(outcome.error, PeerLostError)
        assert outcome.error.ranks == (0,)
        assert "no sign of life" not in str(outcome.error)


@pytest.mark.fault(42)
def test_where_the_stopped_rank_holds_the_store_the_others_still_end_soon_after_the_timeout(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> float:
        init_with_the_store_on_rank_0(rank, world_size)
        with Gatherer(transport="gloo", timeout_s=20) as gatherer:
            pids = gatherer.all_gather(os.getpid())
            if rank == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
                return 0
            wait_until_stopped(pids[0])
            started = time.monotonic()
            with pytest.raises(TransportTimeoutError, match="the job's store does not answer"):
                gatherer.all_gather(1, timeout_s=1)
            reached("done")
            return time.monotonic() - started

    running = pool.start(2, body, init=False)
    running.wait_for(1, "done")
    os.kill(running.pid(0), signal.SIGCONT)
    assert running.wait()[1].value < 4


def test_ranks_that_have_left_the_with_block_are_not_reported_as_dead(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        import torch.distributed as dist

        text = ""
        with Gatherer(transport="gloo", timeout_s=10) as gatherer:
            gatherer.all_gather(0)
            if rank == 0:
                with pytest.raises(TransportError) as caught:
                    gatherer.all_gather(1)
                text = str(caught.value)
        dist.barrier()
        return text

    text = pool.values(3, body)[0]
    assert "no sign of life" not in text
    assert "ranks 1-2 never entered all_gather #2 (they closed their Gatherer after #1)" in text


def test_a_forked_child_that_constructs_on_the_parents_group_is_refused_and_the_parents_stay_in_step(
    pool: RankPool,
) -> None:
    def body(rank: int, world_size: int) -> bool:
        with Gatherer(transport="gloo", timeout_s=20) as gatherer:
            gatherer.all_gather(0)
            child = os.fork() if rank == 1 else -1
            if child == 0:
                try:
                    Gatherer(timeout_s=2)
                except ClosedError as exc:
                    os._exit(0 if "belongs to the parent process" in str(exc) else 1)
                os._exit(1)
            if rank == 1:
                assert os.waitpid(child, 0)[1] == 0
            gatherer.all_gather(0)
        with Gatherer(transport="gloo", timeout_s=5) as gatherer:
            return gatherer.all_gather(rank) == [0, 1]

    assert pool.values(2, body) == [True, True]


def test_a_forked_child_is_refused(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> bool:
        with Gatherer(transport="gloo", timeout_s=20) as gatherer:
            gatherer.all_gather(0)
            child = os.fork()
            if child == 0:
                try:
                    gatherer.all_gather(1)
                except ClosedError:
                    os._exit(0)
                os._exit(1)
            _, status = os.waitpid(child, 0)
            return status == 0 and gatherer.all_gather(rank) == [0, 1]

    assert pool.values(2, body) == [True, True]


def test_bad_settings_keep_their_cause_on_the_failing_rank(pool: RankPool) -> None:
    outcomes = pool.run(2, lambda rank, world_size: Gatherer(slot_nbytes=10 if rank else 2048, timeout_s=20))
    assert isinstance(outcomes[1].error, SetupError)
    assert isinstance(outcomes[1].error.__cause__, SettingsError)
