"""Shared memory between processes: ranks that die, stop, leave, fork, or are many."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from forked_ranks import run_forked_ranks
from gather_core import Gatherer
from gather_core.errors import (
    AbortedError,
    PeerLostError,
    TransportError,
    TransportTimeoutError,
)
from gather_core.testing.thread_ranks import local_contexts
from gather_core.transport import GroupContext, PeerState
from gather_transports.shm import ShmTransport
from rank_pool import RankPool, reached
from shm_ranks import exchange, failed, opened, opened_in


class Killer:
    """In place of how a rank waits: kills it where it would begin to."""

    @property
    def tokens(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def shm_names() -> set[str]:
    return set(os.listdir("/dev/shm"))


def test_a_rank_that_is_killed_before_it_has_come_is_named_at_once(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[Any, ...]:
        transport = opened()
        exchange(transport, b"together")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        started = time.monotonic()
        exc = failed(transport)
        took_s = time.monotonic() - started
        states = transport.peers()
        transport.close()
        return type(exc), getattr(exc, "ranks", ()), str(exc), took_s, states

    outcomes = pool.run(3, body, expect_death=[1])
    for outcome in (outcomes[0], outcomes[2]):
        error, ranks, text, took_s, states = outcome.value
        assert (error, ranks) == (PeerLostError, (1,))
        assert text == "the process of rank 1 has ended"
        assert took_s < 10
        assert states == [PeerState.ALIVE, PeerState.DEAD, PeerState.ALIVE]


def test_a_rank_that_is_killed_after_it_has_sent_and_before_it_reads_has_sent_everything(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[list[bytes], str]:
        transport = opened()
        if rank == 1:
            transport._group.wait = Killer()  # type: ignore[union-attr]
        content = b"from %d" % rank
        everything = exchange(transport, content)
        text = str(failed(transport))
        transport.close()
        return everything, text

    outcomes = pool.run(3, body, expect_death=[1])
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.value == ([b"from 0", b"from 1", b"from 2"], "the process of rank 1 has ended")


def test_a_rank_that_is_killed_while_others_wait_for_it_is_named_at_once(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[str, float]:
        with Gatherer(transport="shm", timeout_s=50) as gatherer:
            gatherer.all_gather(rank)
            if rank == 2:
                reached("here")
                time.sleep(60)
            reached("waiting")
            started = time.monotonic()
            with pytest.raises((PeerLostError, AbortedError)) as caught:  # who is the first to see it tells the other
                gatherer.all_gather(rank)
            return str(caught.value), time.monotonic() - started

    running = pool.start(3, body)
    for rank, point in ((0, "waiting"), (1, "waiting"), (2, "here")):
        running.wait_for(rank, point)
    os.kill(running.pid(2), signal.SIGKILL)
    outcomes = running.wait()
    for outcome in outcomes[:2]:
        text, took_s = outcome.value
        assert "all_gather #2: the process of rank 2 has ended" in text
        assert took_s < 10


def test_a_rank_that_is_stopped_is_late_and_not_dead(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[Any, ...]:
        transport = opened()
        exchange(transport, b"x")
        if rank == 1:
            reached("here")
            time.sleep(1)  # in which it is stopped
            return ()
        reached("here")
        exc = failed(transport, timeout_s=1.5)
        transport.abort("gave up")
        return type(exc), getattr(exc, "missing", ()), str(exc)

    running = pool.start(2, body)
    running.wait_for(0, "here")
    running.wait_for(1, "here")
    os.kill(running.pid(1), signal.SIGSTOP)
    try:
        while 0 not in running.finished():
            running.poll()
    finally:
        os.kill(running.pid(1), signal.SIGCONT)
    expected = "rank 1 did not come within 1.5 s; rank 1 stopped by a signal or debugger"
    assert running.wait()[0].value == (TransportTimeoutError, (1,), expected)


def test_a_rank_that_closes_early_or_aborts_is_named_at_once(pool: RankPool) -> None:
    def body(rank: int, world_size: int, aborts: bool) -> tuple[Any, ...]:
        transport = opened()
        exchange(transport, b"x")
        if rank == 1:
            if aborts:
                transport.abort("out of paper")
            transport.close()
            return ()
        exc = failed(transport)
        transport.close()
        return type(exc), str(exc)

    for aborts, expected in (
        (True, (AbortedError, "rank 1 aborted: out of paper")),
        (False, (PeerLostError, "rank 1 closed the transport before this exchange")),
    ):
        values = pool.values(3, body, aborts)
        assert (values[0], values[2]) == (expected, expected)


def test_nothing_is_left_when_all_ranks_are_killed_at_once(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        transport = opened()
        transport.slot(3 << 20)[:1] = b"x"
        transport.all_gather_slots(3 << 20, timeout_s=30)
        os.kill(os.getpid(), signal.SIGKILL)

    before = shm_names()
    pool.run(3, body, expect_death=[0, 1, 2])
    assert shm_names() - before == set()


@pytest.mark.fault(36)
def test_a_process_that_opens_and_leaves_the_memory_harms_nobody(pool: RankPool) -> None:
    """As it would where a resource tracker took itself for responsible."""

    def body(rank: int, world_size: int) -> list[list[bytes]]:
        transport = opened()
        first = exchange(transport, b"1")
        with transport._group._files[0] as fd:  # type: ignore[union-attr]
            look = f"import os; fd = os.open('/proc/{os.getpid()}/fd/{fd}', os.O_RDWR); assert os.pread(fd, 1, 0)"
            subprocess.run([sys.executable, "-c", look], check=True)
        second = exchange(transport, b"2")
        transport.close()
        return [first, second]

    assert pool.values(2, body) == [[[b"1"] * 2, [b"2"] * 2]] * 2


def test_a_forked_child_can_neither_use_nor_harm_it(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[int, list[bytes]]:
        transport = opened()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with pytest.raises(TransportError, match="belongs to the parent process"):
                    transport.slot(1)
                with pytest.raises(TransportError, match="belongs to the parent process"):
                    transport.all_gather_slots(1, timeout_s=5)
                transport.abort("from the child")
                transport.close()
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        everything = exchange(transport, b"%d" % rank)
        transport.close()
        return code, everything

    assert pool.values(2, body) == [(0, [b"0", b"1"])] * 2


def num_traces() -> int:
    """How many descriptors and mappings of shared memory this process has."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one of looking
            links.append(os.readlink(entry))
    return sum("memfd:gather-core" in line for line in [*links, *Path("/proc/self/maps").read_text().splitlines()])


def num_traces_in_child(view: memoryview | None) -> int:
    """The same of a forked child, which also uses a view that it has inherited; 99 where it cannot say."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            if view is not None:
                view[:5] = b"child"
            code = num_traces()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("during_open", [False, True])
def test_a_child_that_is_forked_while_a_thread_uses_it_keeps_nothing_of_it(pool: RankPool, during_open: bool) -> None:
    def body(rank: int, world_size: int, during_open: bool) -> tuple[bool, int, bytes]:
        is_inside, go_on = threading.Event(), threading.Event()
        transport = ShmTransport()
        nbytes = 40 << 20  # more than is allocated in one step

        def stop() -> None:
            is_inside.set()
            go_on.wait(30)

        def use() -> None:
            if during_open:
                transport.open(context, nbytes, timeout_s=30)
            else:
                transport.slot(nbytes)

        (context,) = local_contexts(1)
        if not during_open:
            transport.open(context, 1024, timeout_s=30)
            transport.slot(6)[:6] = b"parent"
        transport.check_interrupt = stop
        thread = threading.Thread(target=use)
        thread.start()
        assert is_inside.wait(30)
        here = num_traces()
        in_child = num_traces_in_child(None if during_open else transport.slot(6))
        go_on.set()
        thread.join()
        content = bytes(transport.slot(6)[:6])
        transport.close()
        return here > 0, in_child, content

    content = bytes(6) if during_open else b"parent"
    assert pool.values(1, body, during_open, init=False) == [(True, 0, content)]


def test_ctrl_c_ends_a_wait(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        transport = opened()
        try:
            if rank == 0:
                reached("waiting")
                exchange(transport, b"x", timeout_s=50)
            failed(transport, timeout_s=50)
        finally:
            transport.abort("interrupted")

    running = pool.start(2, body)
    running.wait_for(0, "waiting")
    os.kill(running.pid(0), signal.SIGINT)
    outcomes = running.wait()
    assert isinstance(outcomes[0].error, KeyboardInterrupt)


def test_waiting_takes_hardly_any_processor_time(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> float:
        transport = opened()
        if rank == 1:
            time.sleep(3)
        before = time.process_time()
        exchange(transport, b"x")
        used_s = time.process_time() - before
        transport.close()
        return used_s

    assert pool.values(2, body)[0] < 0.06, "0.2 s in 10 s"


@pytest.mark.parametrize("world_size", [16, 64])
def test_more_ranks_than_processors(pool: RankPool, world_size: int) -> None:
    def body(rank: int, world_size: int, num_ranks: int) -> list[int]:
        def on_rank(context: GroupContext) -> None:
            transport = opened_in(context)
            for number in range(20):
                nbytes = 5000 if number % 7 == context.rank % 7 else 100
                transport.slot(nbytes)[:100] = b"%100d" % (1000 * number + context.rank)
                views = transport.all_gather_slots(nbytes, timeout_s=50)
                assert [int(bytes(view[:100])) - 1000 * number for view in views] == list(range(num_ranks))
            transport.close()

        return run_forked_ranks(num_ranks, on_rank)

    assert pool.values(1, body, world_size, init=False) == [[0] * world_size]


def test_a_sub_group_shares_memory_beside_the_whole_group(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        import torch.distributed as dist

        pair = dist.new_group([0, 2])
        with Gatherer(transport="shm", timeout_s=20) as everyone:
            found: list[Any] = [everyone.all_gather(rank)]
            if rank != 1:
                with Gatherer(transport="shm", group=pair, timeout_s=20) as both:
                    found.append(both.all_gather(rank))
            found.append(everyone.all_gather(10 * rank))
        return found

    assert pool.values(3, body) == [
        [[0, 1, 2], [0, 2], [0, 10, 20]],
        [[0, 1, 2], [0, 10, 20]],
        [[0, 1, 2], [0, 2], [0, 10, 20]],
    ]
