"""What the ranks tell each other when something went wrong, and what that costs where nobody answers."""

import gc
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from fresh_python import run_python
from gather_core import (
    AbortedError,
    DesyncError,
    Gatherer,
    GroupBrokenError,
    PeerLostError,
    RemoteCallError,
    TransportError,
    TransportTimeoutError,
)
from gather_core.bell import StoreBell
from gather_core.deadline import Deadline
from gather_core.local_store import LocalBell, LocalStore
from gather_core.notes import Notes
from gather_core.positions import Answers, Position, explain
from gather_transports.threads import ThreadGroup, ThreadRank

RANKS = (0, 1, 2)
IN_ROUND_1: Position = (2, "all_gather", "", "round 1")


def values(world_size: int, body: Callable[[ThreadRank], Any]) -> list[Any]:
    outcomes = ThreadGroup(world_size).run(body)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def test_a_rank_that_has_closed_its_gatherer_says_so_to_one_that_waits_for_it() -> None:
    def body(member: ThreadRank) -> str:
        with Gatherer(transport="threads", group=member, timeout_s=10) as gatherer:
            gatherer.all_gather(0)
            if member.rank == 1:
                return ""
            with pytest.raises(TransportTimeoutError) as raised:
                gatherer.all_gather(1, timeout_s=0.1)
            assert raised.value.missing == ()
            return str(raised.value)

    text, _ = values(2, body)
    assert "rank 1 never entered all_gather #2 (it closed its Gatherer after #1)" in text
    assert "do some have fewer batches?" in text


def test_only_the_last_100_closed_gatherers_answer_and_none_is_kept_alive() -> None:
    bell, store = LocalBell(), LocalStore()
    gatherers = []

    def body(member: ThreadRank) -> None:
        gatherer = Gatherer(transport="threads", group=member, timeout_s=10)
        gatherer.close()
        gatherers.append(weakref.ref(gatherer))

    values(2, body)
    gc.collect()
    assert [reference() for reference in gatherers] == [None, None]

    stores = []
    for number in range(101):
        store = LocalStore()
        stores.append(store)
        Notes(store, bell, str(number), 1, RANKS).close()
        store.set("asked", "0")
    for number in range(101):
        bell.ring(str(number), RANKS)
    assert [store.check(["position/1"]) for store in stores] == [False] + [True] * 100


def test_a_slow_function_of_run_is_named_as_such() -> None:
    rank_0_has_given_up = threading.Event()

    def slow(rank: int) -> None:
        if rank == 1:
            rank_0_has_given_up.wait(10)

    def body(member: ThreadRank) -> str:
        with Gatherer(transport="threads", group=member, timeout_s=10) as gatherer:
            try:
                with pytest.raises(TransportError) as raised:
                    gatherer.run(slow, member.rank, timeout_s=0.1, tag="val")
            finally:
                rank_0_has_given_up.set()
            return str(raised.value)

    text, _ = values(2, body)
    assert "rank 1 never entered run #1 'val' (it is still running the function given to it)" in text
    assert "larger timeout_s" in text


@pytest.mark.parametrize("failure", [None, ValueError("bad")])
def test_a_function_of_run_that_has_ended_is_named_no_more(failure: Exception | None) -> None:
    rank_0_has_given_up = threading.Event()

    def function(gatherer: Gatherer) -> None:
        gatherer.all_gather("inside")
        if failure is not None:
            raise failure

    def body(member: ThreadRank) -> str:
        with Gatherer(transport="threads", group=member, timeout_s=10) as gatherer:
            if failure is None:
                gatherer.run(function, gatherer)
            else:
                with pytest.raises(RemoteCallError):
                    gatherer.run(function, gatherer)
            if member.rank == 1:
                rank_0_has_given_up.wait(10)
                return ""
            with pytest.raises(TransportTimeoutError) as raised:
                gatherer.all_gather(1, timeout_s=0.1)
            rank_0_has_given_up.set()
            return str(raised.value)

    assert "rank 1 never entered all_gather #3 (it is at run #2)" in values(2, body)[0]


def test_a_function_of_run_that_ends_by_an_interrupt_is_named_no_more() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with Gatherer(transport="single") as gatherer:
        gatherer.all_gather(0)
        with pytest.raises(KeyboardInterrupt):
            gatherer.run(interrupted)
        assert gatherer._connection.notes.position == (1, "all_gather", "", "done")


def test_ranks_that_had_no_time_to_answer_are_not_called_silent() -> None:
    cause = PeerLostError("lost rank 0", (0,))
    heard_out = explain(cause, IN_ROUND_1, Answers({2: IN_ROUND_1}, cut_short=""), 3)
    assert heard_out.silent == [0, 1]
    assert "no sign of life from ranks 0-1" in heard_out.text
    cut_short = explain(cause, IN_ROUND_1, Answers({2: IN_ROUND_1}, cut_short="the store is gone"), 3)
    assert cut_short.silent == []
    assert "where ranks 0-1 may be is not known, as the store is gone" in cut_short.text


def test_an_abort_that_arrives_while_a_rank_asks_makes_nobody_silent() -> None:
    store, bell = LocalStore(), LocalBell()
    asking = Notes(store, bell, "scope", 0, RANKS)
    asking.position = IN_ROUND_1
    aborting = Notes(store, bell, "scope", 1, RANKS)
    bell.listen("scope", 1, lambda: aborting.abort("boom"))
    error = asking.explain(DesyncError("out of step"), Deadline(5))
    assert isinstance(error, DesyncError)
    assert "rank 1 aborted meanwhile" in str(error)
    assert "no sign of life" not in str(error)


def test_the_text_of_an_abort_is_short_and_printable_whatever_its_rank_wrote() -> None:
    store, bell = LocalStore(), LocalBell()
    told = Notes(store, bell, "scope", 0, RANKS)
    store.set("abort", json.dumps([1, "\x1b[2J" + "x" * 1_000_000]))
    bell.ring("scope", (0,))
    with pytest.raises(AbortedError, match=r"rank 1 aborted: \\x1b\[2J") as error:
        told.check()
    assert len(str(error.value)) < 5000


class DeadStore(LocalStore):
    """Its host is gone: every call fails. Or it is stopped: every call blocks until `fail` is set."""

    def __init__(self, fail: threading.Event) -> None:
        super().__init__()
        self.fail = fail
        self.is_dead = True

    def _call(self) -> None:
        if self.is_dead:
            self.fail.wait(30)
            raise RuntimeError("connection reset")

    def set(self, key: str, value: Any, /) -> None:
        self._call()
        super().set(key, value)

    def check(self, keys: list[str], /) -> bool:
        self._call()
        return super().check(keys)

    def add(self, key: str, amount: int, /) -> int:
        self._call()
        return super().add(key, amount)

    def compare_set(self, key: str, expected: Any, desired: Any, /) -> bytes:
        self._call()
        return super().compare_set(key, expected, desired)

    def wait(self, keys: list[str], timeout: timedelta, /) -> None:
        self._call()
        self.fail.wait(30)
        raise RuntimeError("connection reset")


@pytest.fixture
def fail() -> Iterator[threading.Event]:
    """Lets the calls of a DeadStore fail; set at the end at the latest, and then no thread of ours is left."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name.startswith("gather-core"):
            thread.join(5)


def test_where_the_store_is_gone_the_lost_ranks_are_those_that_the_transport_names(fail: threading.Event) -> None:
    fail.set()
    notes = Notes(DeadStore(fail), LocalBell(), "scope", 1, RANKS)
    notes.position = IN_ROUND_1
    error = notes.explain(PeerLostError("lost rank 0", (0,)), Deadline(5))
    assert isinstance(error, PeerLostError)
    assert error.ranks == (0,)
    assert "no sign of life" not in str(error)
    assert "as the job's store is gone" in str(error)


def test_a_rank_that_the_transport_has_lost_is_told_apart_from_those_that_are_silent_for_another_reason() -> None:
    notes = Notes(LocalStore(), LocalBell(), "scope", 1, RANKS)
    notes.position = IN_ROUND_1
    error = notes.explain(PeerLostError("lost rank 0", (0,)), Deadline(5))
    assert isinstance(error, PeerLostError)
    assert error.ranks == (0,)
    assert "no sign of life from ranks 0, 2" in str(error)


def test_ranks_that_are_known_to_be_dead_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(duration_s: float) -> None:
        raise AssertionError("it waits for an answer")

    monkeypatch.setattr("gather_core.notes.sleep", wait)
    store, bell = LocalStore(), LocalBell()
    notes = Notes(store, bell, "scope", 1, RANKS)
    notes.position = IN_ROUND_1
    error = notes.explain(PeerLostError("lost rank 0", (0,)), Deadline(5), dead=[0, 2])
    assert isinstance(error, PeerLostError)
    assert error.ranks == (0,)
    assert "no sign of life from ranks 0, 2" in str(error)
    with pytest.raises(AssertionError, match="it waits for an answer"):
        notes.explain(PeerLostError("lost rank 0", (0,)), Deadline(5), dead=[0])


def test_a_break_whose_explanation_is_interrupted_is_still_told_to_the_transport(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def late(nbytes: int, *, timeout_s: float) -> Any:
        raise TransportTimeoutError("too late")

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    told: list[str] = []
    with Gatherer(transport="single") as gatherer:
        monkeypatch.setattr(gatherer.transport, "all_gather_slots", late)
        monkeypatch.setattr(gatherer.transport, "abort", told.append)
        monkeypatch.setattr(Notes, "explain", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gatherer.all_gather(1)
        assert told == ["TransportTimeoutError: too late"]
        with pytest.raises(GroupBrokenError, match="too late"):
            gatherer.all_gather(1)


def test_a_store_that_does_not_answer_holds_up_a_failed_operation_for_seconds_at_most(fail: threading.Event) -> None:
    notes = Notes(DeadStore(fail), LocalBell(), "scope", 1, RANKS)
    notes.position = IN_ROUND_1
    started = time.monotonic()
    deadline = Deadline(1.5)
    error = notes.explain(TransportTimeoutError("too late"), deadline)
    notes.abort("too late", deadline)
    passed_on = AbortedError("rank 2 aborted", 2)
    assert notes.origin(passed_on) is passed_on
    assert time.monotonic() - started < 5
    assert isinstance(error, TransportTimeoutError)
    assert error.missing == ()
    assert "as the job's store does not answer" in str(error)


def test_a_store_that_does_not_answer_does_not_keep_its_bell_from_closing(fail: threading.Event) -> None:
    store = DeadStore(fail)
    store.is_dead = False
    bell = StoreBell(store, 0)
    store.is_dead = True
    closing = threading.Thread(target=bell.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


_NOBODY_ANSWERS = """
import atexit, threading

@atexit.register
def runs_last():
    print([thread.name for thread in threading.enumerate() if thread.name.startswith("gather-core")])

@atexit.register
def runs_after_those_of_gather_core():
    notes.abort("too late")
    notes.explain(TransportTimeoutError("too late"), Deadline(5))
    print(store.check(["abort"]))

from gather_core import TransportTimeoutError
from gather_core.deadline import Deadline
from gather_core.local_store import LocalBell, LocalStore
from gather_core.notes import Notes

store = LocalStore()
notes = Notes(store, LocalBell(), "scope", 0, (0, 1))
asking = threading.Event()
store.compare_set = lambda *args: asking.set() or b"0"
threading.Thread(target=notes.explain, args=(TransportTimeoutError("late"), Deadline(5)), daemon=True).start()
asking.wait()
del store.compare_set
"""


def test_at_exit_no_thread_of_ours_goes_on_or_begins() -> None:
    assert run_python(_NOBODY_ANSWERS).splitlines() == ["False", "[]"]
