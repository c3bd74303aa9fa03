"""Operations in the background: their order, their errors, and what becomes of them when a Gatherer is closed."""

import contextlib
import gc
import threading
import time
import weakref
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from gather_core import (
    AbortedError,
    ClosedError,
    DesyncError,
    Gatherer,
    GatherError,
    GroupBrokenError,
    RemoteEncodeError,
    SettingsError,
    cuda_threads,
)
from gather_core.ordered_calls import OrderedCalls
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport
from thread_gatherers import caught, on_gatherers


def test_calls_run_in_the_order_in_which_they_are_made_synchronous_ones_too() -> None:
    def body(gatherer: Gatherer) -> Any:
        rank = gatherer.rank
        futures: list[Future[Any]] = [gatherer.all_gather_async((rank, 0), tag="first")]
        futures.append(gatherer.gather_async((rank, 1), dst=1))
        between = gatherer.all_gather((rank, 2), tag="synchronous")
        futures.append(gatherer.broadcast_async((rank, 3), src=1))
        gatherer.barrier()
        return [future.result(10) for future in futures], between

    def everyone(number: int) -> list[tuple[int, int]]:
        return [(rank, number) for rank in range(3)]

    for rank, (results, between) in enumerate(on_gatherers(3, body)):
        assert results == [everyone(0), everyone(1) if rank == 1 else None, (1, 3)]
        assert between == everyone(2)


def test_a_future_is_running_and_cannot_be_cancelled() -> None:
    def body(gatherer: Gatherer) -> object:
        futures = [gatherer.all_gather_async(number) for number in range(5)]
        states = [(future.cancel(), future.cancelled()) for future in futures]
        return states, [future.result(10) for future in futures]

    assert on_gatherers(2, body) == [([(False, False)] * 5, [[number] * 2 for number in range(5)])] * 2


def test_errors_arrive_in_the_future_and_the_ranks_stay_in_step() -> None:
    def body(gatherer: Gatherer) -> object:
        bad = gatherer.all_gather_async((lambda: None) if gatherer.rank else 0)
        good = gatherer.all_gather_async("good")
        error = bad.exception(10)
        assert isinstance(error, RemoteEncodeError)
        return list(error.failures), good.result(10)

    assert on_gatherers(2, body) == [([1], ["good"] * 2)] * 2


def test_leaving_the_with_block_waits_for_all() -> None:
    futures: dict[int, list[Future[Any]]] = {}

    def body(gatherer: Gatherer) -> None:
        futures[gatherer.rank] = [gatherer.all_gather_async(number) for number in range(20)]

    on_gatherers(2, body)
    assert [[future.result(0) for future in futures[rank]] for rank in range(2)] == [[[n] * 2 for n in range(20)]] * 2


def test_a_codec_cannot_call_its_own_gatherer_from_the_background() -> None:
    class Reentrant:
        gatherer: Any = None

        def __reduce__(self) -> Any:
            self.gatherer.all_gather(0)
            return (int, ())

    with Gatherer() as gatherer:
        Reentrant.gatherer = gatherer
        assert "from inside another operation" in str(gatherer.all_gather_async(Reentrant()).exception(10))
        assert gatherer.all_gather(1) == [1]


def test_a_close_fails_what_has_not_begun_and_gives_up_what_runs() -> None:
    entered = threading.Event()

    class Waits(ThreadsTransport):
        def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Any:
            entered.set()
            return super().all_gather_slots(nbytes, timeout_s=timeout_s)

    def body(gatherer: Gatherer) -> object:
        if gatherer.rank == 1:
            assert done.wait(20)
            return None  # what rank 0 had sent before may still arrive, or not
        futures = [gatherer.all_gather_async(number) for number in range(3)]
        assert entered.wait(20)
        gatherer.close()
        done.set()
        errors = [future.exception(10) for future in futures]
        assert all(isinstance(error, ClosedError) for error in errors[1:]), errors
        assert type(caught(lambda: gatherer.all_gather_async(0))) is ClosedError
        assert not [thread for thread in threading.enumerate() if thread.name == "gather-core-async"]
        return errors[0] is not None

    done = threading.Event()
    assert on_gatherers(2, body, Waits) == [True, None]


def test_a_broken_group_refuses_at_once() -> None:
    def body(gatherer: Gatherer) -> object:
        gatherer.abort()
        return type(caught(lambda: gatherer.all_gather_async(0)))

    assert on_gatherers(1, body) == [GroupBrokenError]


def test_what_waits_behind_a_failure_that_breaks_the_group_fails_too() -> None:
    def body(gatherer: Gatherer) -> object:
        futures = [gatherer.all_gather_async(0, tag="a" if gatherer.rank else "b"), gatherer.all_gather_async(1)]
        return [type(future.exception(10)).__name__ for future in futures]

    assert on_gatherers(2, body) == [["DesyncError", "GroupBrokenError"]] * 2


def test_transports_on_the_jobs_own_group_have_no_asynchronous_operations() -> None:
    from dataclasses import replace

    class Shared(ThreadsTransport):
        capabilities = replace(ThreadsTransport.capabilities, shares_group=True)

    def body(gatherer: Gatherer) -> object:
        return type(caught(lambda: gatherer.all_gather_async(0)))

    assert on_gatherers(2, body, Shared) == [SettingsError] * 2


def test_a_queue_that_nobody_uses_has_no_thread_and_a_result_is_let_go() -> None:
    calls = OrderedCalls()
    assert calls.is_idle
    assert calls.submit(lambda: 5).result(10) == 5
    calls.drain()
    assert not calls.close()
    calls.join()
    assert type(caught(lambda: calls.submit(lambda: 5))) is ClosedError


@pytest.mark.parametrize("failure", [KeyError("x"), SystemExit(3)])
def test_whatever_a_call_raises_is_in_its_future(failure: BaseException) -> None:
    calls = OrderedCalls()

    def fail() -> None:
        raise failure

    assert calls.submit(fail).exception(10) is failure
    with pytest.raises(type(failure)):
        calls.call(fail)
    calls.close()
    calls.join()


def test_an_operation_inside_another_is_refused_also_with_asynchronous_ones_pending() -> None:
    class Reentrant:
        gatherer: Any = None

        def __reduce__(self) -> Any:
            pending.append(self.gatherer.all_gather_async("behind"))
            self.gatherer.all_gather(0)
            return (int, ())

    pending: list[Future[Any]] = []
    with Gatherer() as gatherer:
        Reentrant.gatherer = gatherer
        assert "from inside another operation" in str(caught(lambda: gatherer.all_gather(Reentrant())))
        assert pending[0].result(10) == ["behind"]


def test_a_callback_of_a_future_cannot_call_its_gatherer() -> None:
    may_go = threading.Event()

    class Waits:
        def __reduce__(self) -> Any:
            assert may_go.wait(10)
            return (int, ())

    with Gatherer() as gatherer:
        calls: list[Any] = [
            lambda _: errors.append(caught(gatherer.barrier)),
            lambda _: errors.append(caught(lambda: gatherer.iter_gather([]))),
            lambda _: errors.append(caught(lambda: gatherer.all_gather_async(0))),
        ]
        errors: list[BaseException] = []
        first, second = gatherer.all_gather_async(Waits()), gatherer.all_gather_async("second")
        for call in calls:
            first.add_done_callback(call)
        may_go.set()
        assert second.result(10) == ["second"]
        assert [type(error) for error in errors] == [GatherError] * 3


def test_where_there_can_be_no_thread_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        if self.name == "gather-core-async":
            raise RuntimeError("can't start new thread")
        start(self)

    start = threading.Thread.start

    def body(gatherer: Gatherer) -> object:
        if gatherer.rank == 0:
            with pytest.raises(RuntimeError, match="new thread"):
                gatherer.all_gather_async(0)
        return type(caught(lambda: gatherer.all_gather(0)))

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert on_gatherers(2, body) == [GroupBrokenError, AbortedError]


def test_an_interrupt_while_the_worker_is_started_leaves_one_worker_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: threading.Thread) -> None:
        start(self)
        raise KeyboardInterrupt

    start = threading.Thread.start
    calls = OrderedCalls()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calls.submit(lambda: 1)
    assert calls.is_idle
    assert calls.submit(threading.current_thread).result(10) is calls._worker
    calls.close()
    calls.join()
    assert not [thread for thread in threading.enumerate() if thread.name == "gather-core-async"]


def test_an_interrupt_at_the_end_of_the_with_block_is_told_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(futures: Any, timeout: float) -> None:
        raise KeyboardInterrupt

    def run_rank(member: ThreadRank) -> object:
        with Gatherer(transport=ThreadsTransport(), group=member, timeout_s=60) as gatherer:
            if member.rank == 1:
                return type(caught(lambda: gatherer.all_gather(0)))
            gatherers.append(gatherer)
            future = gatherer.all_gather_async(0, tag="another")
            monkeypatch.setattr("gather_core.ordered_calls.wait", interrupt)
        return future

    gatherers: list[Gatherer] = []
    interrupted, other = ThreadGroup(2).run(run_rank)
    assert [type(caught(gatherer.barrier)) for gatherer in gatherers] == [ClosedError]
    assert isinstance(interrupted, KeyboardInterrupt)
    assert other in (AbortedError, DesyncError)


def test_a_future_with_an_error_is_gone_with_its_last_reference() -> None:
    class Remembers(OrderedCalls):
        def submit(self, fn: Any) -> Future[Any]:
            future = super().submit(fn)
            futures.append(weakref.ref(future))
            return future

    futures: list[weakref.ref[Future[Any]]] = []
    calls = Remembers()
    gc.disable()
    try:
        assert isinstance(calls.submit(lambda: 1 // 0).exception(10), ZeroDivisionError)
        with contextlib.suppress(ZeroDivisionError):
            calls.call(lambda: 1 // 0)
        deadline_s = time.monotonic() + 10  # the worker may still be about to let them go
        while any(future() for future in futures) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert [future() for future in futures] == [None, None]
    finally:
        gc.enable()
        calls.close()
        calls.join()


def test_the_worker_has_the_device_of_who_made_the_gatherer_and_waits_for_the_callers_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[tuple[str, str]] = []

    def note(what: str) -> None:
        log.append(("worker" if threading.current_thread().name == "gather-core-async" else "caller", what))

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking

        def record(self) -> None:
            note("record")

        def synchronize(self) -> None:
            note("synchronize")

    class Encodes:
        def __reduce__(self) -> Any:
            note("encode")
            return (int, ())

    cuda = SimpleNamespace(Event=Event, current_device=lambda: 3, set_device=lambda device: note(f"device {device}"))
    monkeypatch.setattr(cuda_threads, "_torch_with_cuda", lambda: SimpleNamespace(cuda=cuda))
    with Gatherer() as gatherer:
        monkeypatch.setattr(cuda, "current_device", lambda: 5)
        future: Future[Any] = gatherer.all_gather_async(Encodes())
        assert future.result(10) == [0]
    assert [what for who, what in log if who == "caller"] == ["record"]
    in_worker = ["device 3", "synchronize", "encode", "record", "synchronize"]
    assert [what for who, what in log if who == "worker"] == in_worker
    assert log.index(("caller", "record")) < log.index(("worker", "synchronize"))


def test_a_queue_whose_last_call_has_ended_runs_nothing_though_its_callbacks_do() -> None:
    calls = OrderedCalls()
    has_callback, in_callback, go_on = threading.Event(), threading.Event(), threading.Event()

    def wait_in_callback(_: Future[bool]) -> None:
        in_callback.set()
        go_on.wait(20)

    calls.submit(lambda: has_callback.wait(20)).add_done_callback(wait_in_callback)
    has_callback.set()
    assert in_callback.wait(20)
    assert not calls.close()
    go_on.set()
    calls.join()
