"""Ranks that are threads: what is special to them, and how a Gatherer ends when a rank stays away or gives up."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from gather_core import AbortedError, Gatherer, GroupBrokenError, GroupContext, TransportError, TransportTimeoutError
from gather_core.local_store import LocalBell
from gather_core.transport import PeerState
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport
from thread_gatherers import caught, on_gatherers

SLOT = 1024


def opened(member: ThreadRank) -> ThreadsTransport:
    transport = ThreadsTransport()
    transport.open(ThreadsTransport.join(member), SLOT, timeout_s=5)
    return transport


def exchange(transport: ThreadsTransport, content: bytes, timeout_s: float = 10) -> list[bytes]:
    """One round 1; what each rank's slot starts with."""
    transport.slot(len(content))[:] = content
    views = transport.all_gather_slots(len(content), timeout_s=timeout_s)
    assert all(view.readonly for view in views)
    return [bytes(view) for view in views]


def on_all(world_size: int, body: Callable[[ThreadsTransport], object]) -> list[object]:
    all_open = threading.Barrier(world_size)  # what round 0 guarantees

    def run_rank(member: ThreadRank) -> object:
        transport = opened(member)
        all_open.wait(10)
        try:
            return body(transport)
        finally:
            transport.close()

    return list(ThreadGroup(world_size).run(run_rank))


def test_it_serves_many_ranks() -> None:
    world_size = 32

    def body(transport: ThreadsTransport) -> object:
        return [exchange(transport, b"%d/%d" % (transport.rank, number)) for number in range(20)]

    expected = [[b"%d/%d" % (rank, number) for rank in range(world_size)] for number in range(20)]
    assert on_all(world_size, body) == [expected] * world_size


def test_slots_are_given_back_when_they_were_large() -> None:
    (transport,) = ThreadGroup(1).run(opened)
    assert isinstance(transport, ThreadsTransport)
    transport.slot(10 * SLOT)
    assert sum(map(len, transport._buffers)) == 11 * SLOT
    transport.slot(64)
    assert sum(map(len, transport._buffers)) == 2 * SLOT


def test_late_ranks_are_named_at_the_deadline() -> None:
    def body(transport: ThreadsTransport) -> object:
        if transport.rank in (1, 2):
            return None
        start = time.monotonic()
        with pytest.raises(TransportTimeoutError) as caught:
            exchange(transport, b"x", timeout_s=0.2)
        assert 0.15 < time.monotonic() - start < 1
        return caught.value.missing, str(caught.value)

    expected = ((1, 2), "ranks 1-2 did not come within 0.2 s")
    assert on_all(4, body) == [expected, None, None, expected]


def test_an_abort_reaches_ranks_that_wait_and_ranks_that_come_later() -> None:
    aborted = threading.Event()

    def body(transport: ThreadsTransport) -> object:
        if transport.rank == 0:
            transport.abort("out of paper")
            transport.abort("again")
            aborted.set()
            return None
        if transport.rank == 2:
            aborted.wait(10)
        with pytest.raises(AbortedError, match="rank 0 aborted: out of paper") as caught:
            exchange(transport, b"x", timeout_s=20)
        return caught.value.rank

    start = time.monotonic()
    assert on_all(3, body) == [None, 0, 0]
    assert time.monotonic() - start < 5


def test_a_round_that_is_complete_is_not_undone_by_an_abort() -> None:
    def body(transport: ThreadsTransport) -> object:
        everything = exchange(transport, b"x")
        transport.abort("afterwards")
        return everything

    assert on_all(2, body) == [[b"x"] * 2] * 2


def test_it_joins_only_thread_groups() -> None:
    context = ThreadsTransport.join(ThreadGroup(3).member(2))
    assert (context.rank, context.world_size, context.ranks) == (2, 3, (0, 1, 2))
    assert ThreadsTransport.unavailable(context) is None
    assert ThreadsTransport.unavailable(None) is None
    foreign = GroupContext(rank=0, world_size=1, store=context.store, bell=context.bell, ranks=(0,))
    assert "ThreadGroup" in str(ThreadsTransport.unavailable(foreign))
    with pytest.raises(TransportError, match="ThreadGroup"):
        ThreadsTransport().open(foreign, SLOT, timeout_s=1)


@pytest.mark.parametrize("rank", [-1, 3])
def test_a_rank_outside_the_group_is_an_error(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is not in a group of 3"):
        ThreadGroup(3).member(rank)


def test_closing_forgets_the_meeting_point() -> None:
    team = ThreadGroup(1)
    transport = opened(team.member(0))
    assert transport.peers() == [PeerState.UNKNOWN]
    transport.close()
    assert team._hubs == {}


def test_a_group_returns_what_each_rank_returned_or_raised() -> None:
    def body(member: ThreadRank) -> int:
        if member.rank == 1:
            raise KeyboardInterrupt
        return member.rank

    first, second, third = ThreadGroup(3).run(body)
    assert (first, third) == (0, 2)
    assert isinstance(second, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("tag", "last_call"),
    [
        ("", "is at #1"),
        ("step \ud800", "is at #1"),
        ("eval", "has called nothing yet"),
    ],
)
def test_a_rank_that_never_comes_is_named_within_the_timeout(tag: str, last_call: str) -> None:
    done = threading.Event()

    def body(gatherer: Gatherer) -> tuple[BaseException, float] | None:
        if "#1" in last_call:
            gatherer.all_gather("together")
        if gatherer.rank == 1:
            done.wait(20)
            return None
        start = time.monotonic()
        exc = caught(lambda: gatherer.all_gather(0, timeout_s=0.5, tag=tag))
        took_s = time.monotonic() - start
        assert isinstance(caught(lambda: gatherer.all_gather(0)), GroupBrokenError)
        done.set()
        return exc, took_s

    for exc, took_s in filter(None, on_gatherers(3, body)):
        assert isinstance(exc, TransportTimeoutError | AbortedError)
        assert "rank 1 did not come within 0.5 s" in str(exc) or "rank 1 never entered all_gather" in str(exc)
        assert 0.4 < took_s < 2
        if isinstance(exc, TransportTimeoutError):
            assert exc.behind == (1,)
            assert exc.missing == (), "rank 1 answered: it is behind, not silent"
            name = f"all_gather #{2 if '#1' in last_call else 1}" + (f" {tag!r}" if tag else "")
            assert f"rank 1 never entered {name} (it {last_call})" in str(exc)


@pytest.mark.parametrize("busy", [True, False], ids=["others wait", "others come later"])
def test_leaving_the_block_by_an_exception_tells_the_others_at_once(busy: bool) -> None:
    left = threading.Event()

    def run_rank(member: ThreadRank) -> object:
        with Gatherer(transport="threads", group=member, timeout_s=30) as gatherer:
            gatherer.all_gather("together")
            if member.rank == 1:
                with pytest.raises(OSError, match="disk full"):
                    with gatherer:
                        raise OSError("disk full")
                left.set()
                return None
            if not busy:
                left.wait(20)
            start = time.monotonic()
            exc = caught(lambda: gatherer.all_gather(0))
            assert time.monotonic() - start < 2
            assert isinstance(caught(lambda: gatherer.all_gather(0)), GroupBrokenError)
            return exc

    outcomes = ThreadGroup(3).run(run_rank)
    assert outcomes[1] is None
    for exc in (outcomes[0], outcomes[2]):
        assert isinstance(exc, AbortedError), repr(exc)
        assert exc.rank == 1
        assert "rank 1 aborted: OSError: disk full" in str(exc)


class Interrupted:
    """Ctrl-C, or an exit, while this is encoded or decoded."""

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc

    def __reduce__(self) -> str:
        raise self.exc


def stop(interrupt: type[BaseException]) -> object:
    raise interrupt("stop")


class StopsHere:
    """Is interrupted where it is decoded on rank 0's thread."""

    def __init__(self, interrupt: type[BaseException]) -> None:
        self.interrupt = interrupt

    def __reduce__(self) -> tuple[object, ...]:
        return stop_on_rank_0, (self.interrupt,)


def stop_on_rank_0(interrupt: type[BaseException]) -> object:
    return stop(interrupt) if threading.current_thread().name == "rank 0" else "decoded"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["encode", "decode", "run"])
def test_an_interrupt_propagates_and_aborts(interrupt: type[BaseException], where: str) -> None:
    def body(gatherer: Gatherer) -> list[object]:
        threading.current_thread().name = f"rank {gatherer.rank}"
        if where == "decode":
            own: Any = StopsHere(interrupt)
            if gatherer.rank:
                assert gatherer.all_gather(own) == ["decoded"] * 3
        else:
            own = Interrupted(interrupt("stop")) if gatherer.rank == 0 else 0
        if where == "run":
            exc = caught(gatherer.run, stop if gatherer.rank == 0 else type, interrupt)
        else:
            exc = caught(gatherer.all_gather, own)
        return [exc, caught(gatherer.all_gather, 0)]

    (first, later), *others = on_gatherers(3, body)
    assert isinstance(first, interrupt)
    assert isinstance(later, GroupBrokenError)
    for exc, later in others:
        assert isinstance(exc, AbortedError), repr(exc)
        assert exc.rank == 0
        assert interrupt.__name__ in str(exc)
        assert isinstance(later, GroupBrokenError)


def test_abort_can_be_called_with_nothing_and_twice() -> None:
    def body(gatherer: Gatherer) -> object:
        if gatherer.rank == 0:
            gatherer.abort()
            gatherer.abort(ValueError("second"))
        return caught(lambda: gatherer.all_gather(0))

    first, second = on_gatherers(2, body)
    assert isinstance(first, GroupBrokenError)
    assert "abort() was called" in str(first)
    assert isinstance(second, AbortedError)
    assert "abort() was called" in str(second)


class OneByOneBell(LocalBell):
    """Rings the next rank only when the one before has raised what it heard."""

    heard = threading.Event()

    def ring(self, scope: str, ranks: tuple[int, ...]) -> None:
        super().ring(scope, ranks[:1])
        self.heard.wait(1)
        super().ring(scope, ranks[1:])


def test_the_rank_that_aborted_is_named_also_where_another_passed_it_on() -> None:
    team = ThreadGroup(3)
    bell = team.bell = OneByOneBell()

    def body(member: ThreadRank) -> int | None:
        with Gatherer(transport="threads", group=member, timeout_s=10) as gatherer:
            gatherer.all_gather("together")
            if member.rank == 0:
                gatherer.abort(OSError("disk full"))
                return None
            with pytest.raises(AbortedError) as raised:
                gatherer.all_gather(0)
            bell.heard.set()
            return raised.value.rank

    assert team.run(body) == [None, 0, 0]
