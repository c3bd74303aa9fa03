"""Ctrl-C, forks and closing while streams and operations in the background are under way, over real processes."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from gather_core import AbortedError, ClosedError, Gatherer, TransportError
from rank_pool import RankPool, reached

TRANSPORTS = ["shm", "gloo"]
PHASES = ["sends and waits", "iterates over its items", "receives and waits", "waits behind others", "leaves"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_interrupts_one_rank_and_ends_the_others(pool: RankPool, transport: str, phase: str) -> None:
    def body(rank: int, world_size: int, transport: str, phase: str) -> None:
        def items() -> Iterator[bytes]:
            yield bytes(5000)
            reached("inside")
            if phase == "iterates over its items":
                threading.Event().wait(50)
            yield bytes(5000)

        def wait_for_abort(gatherer: Gatherer) -> None:
            while True:
                threading.Event().wait(0.05)
                gatherer.transport.check_interrupt()

        with Gatherer(transport=transport, timeout_s=50) as gatherer:
            gatherer.all_gather(0)
            if rank == 1:
                if phase in ("sends and waits", "iterates over its items"):
                    pairs = gatherer.iter_gather(list[bytes](), dst=1, budget_nbytes=100)
                    next(pairs)
                    if phase == "iterates over its items":
                        list(pairs)
                wait_for_abort(gatherer)
            if phase in ("waits behind others", "leaves"):
                gatherer.all_gather_async(0)
                reached("inside")
                if phase == "waits behind others":
                    gatherer.barrier()
            elif phase == "receives and waits":
                reached("inside")
                next(gatherer.iter_gather([1]))
            else:
                gatherer.iter_gather(items(), dst=1, budget_nbytes=100)

    running = pool.start(2, body, transport, phase)
    running.wait_for(0, "inside")
    time.sleep(0.1)  # until it waits: nothing can catch what comes as `__exit__` begins, and this process does not end
    os.kill(running.pid(0), signal.SIGINT)
    outcomes = running.wait()
    assert isinstance(outcomes[0].error, KeyboardInterrupt), outcomes[0]
    assert isinstance(outcomes[1].error, AbortedError), outcomes[1]
    assert "rank 0 aborted: KeyboardInterrupt" in str(outcomes[1].error)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", ["background", "stream"])
def test_a_forked_child_that_closes_takes_nothing_from_its_parent(pool: RankPool, transport: str, what: str) -> None:
    def body(rank: int, world_size: int, transport: str, what: str) -> Any:
        def in_child(gatherer: Gatherer) -> None:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    gatherer.iter_gather([])
                except ClosedError:
                    gatherer.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        with Gatherer(transport=transport, timeout_s=50) as gatherer:
            if what == "background":
                if rank == 0:
                    pending = gatherer.all_gather_async(rank)
                    in_child(gatherer)
                    return pending.result(50)
                in_child(gatherer)
                return gatherer.all_gather(rank)
            sources: list[int] = []
            for source, _ in gatherer.iter_gather(range(3), budget_nbytes=100):
                if not sources:
                    in_child(gatherer)
                sources.append(source)
            return sorted(sources)

    expected: list[Any] = [[0, 1]] * 2 if what == "background" else [[0, 0, 0, 1, 1, 1], []]
    assert pool.values(2, body, transport, what) == expected


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_close_from_another_thread_ends_the_operation_at_once(pool: RankPool, transport: str) -> None:
    def body(rank: int, world_size: int, transport: str) -> None:
        store: Any = dist.distributed_c10d._get_default_store()
        gatherer = Gatherer(transport=transport, timeout_s=50)
        gatherer.all_gather(0)
        if rank == 0:
            threading.Timer(0.2, gatherer.close).start()
            with pytest.raises((TransportError, ClosedError)):
                gatherer.barrier()
            store.set("over", "")
        store.wait(["over"], timedelta(seconds=25))
        gatherer.close()

    pool.values(2, body, transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_child_that_a_signal_handler_forks_inside_an_operation_leaves_the_group_to_its_parent(
    pool: RankPool, transport: str
) -> None:
    def body(rank: int, world_size: int, transport: str) -> Any:
        parent, children = os.getpid(), list[int]()

        def fork(*_: object) -> None:
            child = os.fork()
            if child:
                children.append(child)

        with Gatherer(transport=transport, timeout_s=50) as gatherer:
            gatherer.barrier()
            if rank == 0:
                before = signal.signal(signal.SIGALRM, fork)
                signal.setitimer(signal.ITIMER_REAL, 0.2)
            else:
                threading.Event().wait(1)
            code = 1
            try:
                first = gatherer.all_gather(rank)
            except ClosedError:
                code = 0
            finally:
                if os.getpid() != parent:
                    os._exit(code)
            if rank == 0:
                signal.signal(signal.SIGALRM, before)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            return codes, first, gatherer.all_gather(rank)

    assert pool.values(2, body, transport) == [([0], [0, 1], [0, 1]), ([], [0, 1], [0, 1])]
