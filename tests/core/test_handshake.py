"""Round 0: the ranks agree, or all raise the same, and nothing is left in the store."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fresh_python import run_python
from gather_core import (
    SetupError,
)
from gather_core.background import Background
from gather_core.deadline import Deadline
from gather_core.handshake import Ballot, Decision, Fact, always_fine, compare_facts, group_id
from gather_core.local_store import LocalStore
from gather_core.opening import open_everywhere
from gather_core.settings import GatherSettings
from gather_core.testing.thread_ranks import local_contexts
from gather_core.transport import GroupContext, PeerState
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport
from thread_gatherers import texts

FACT: Fact = {"wire": 1, "codec": "pickle", "slot_nbytes": 1024, "auto": {}, "host": "x", "timeout_s": 60}


def vote_all(
    facts: Sequence[Fact | None],
    decide: Callable[[Sequence[Fact]], Decision] = compare_facts,
    timeout_s: float = 10,
    store: LocalStore | None = None,
) -> list[Decision | BaseException]:
    """Votes with one thread per rank; a rank whose fact is None does not come."""
    store = store or LocalStore()

    def body(member: ThreadRank) -> Decision:
        fact = facts[member.rank]
        if fact is None:
            return {}
        return Ballot(store, "stage", member.rank, len(facts)).vote(fact, decide, Deadline(timeout_s))

    return ThreadGroup(len(facts)).run(body)


def wait_until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = Deadline(within_s)
    while not condition():
        assert not deadline.passed(), "waited in vain"
        threading.Event().wait(0.001)


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_ranks_that_agree_get_one_decision_and_leave_no_key(world_size: int) -> None:
    store = LocalStore()
    decisions = vote_all([FACT] * world_size, store=store)
    assert all(decision == decisions[0] for decision in decisions)
    assert isinstance(decisions[0], dict)
    assert decisions[0]["hosts"] == [0] * world_size
    assert store._values == {}


def test_every_construction_has_a_nonce_of_its_own() -> None:
    (first,), (second,) = vote_all([FACT]), vote_all([FACT])
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["nonce"] != second["nonce"]
    ids = {group_id((0, 1), 1, "a"), group_id((1, 0), 1, "a"), group_id((0, 1), 2, "a"), group_id((0, 1), 1, "b")}
    assert len(ids) == 4
    assert all(0 <= number < 1 << 64 for number in ids)


def test_auto_may_choose_what_all_ranks_have_in_order() -> None:
    first, second = {"where": "anywhere", "reason": None}, {"where": "one host", "reason": None}
    fact = FACT | {"auto": {"a": first, "b": second, "c": first}}
    decision = compare_facts([fact, fact | {"auto": {"c": first, "b": first}}, fact])
    assert [(option["spec"], option["reason"]) for option in decision["auto"]] == [
        ("a", "rank 1: not offered"),
        ("b", ""),
        ("c", ""),
    ]
    decision = compare_facts([fact, fact | {"host": "y", "auto": fact["auto"] | {"c": second}}, fact])
    assert decision["hosts"] == [0, 1, 0]
    assert [option["spec"] for option in decision["auto"]] == ["a"], "all ranks must find it fit"


def test_a_failure_of_one_rank_is_raised_on_all_and_leaves_no_key() -> None:
    store = LocalStore()
    outcomes = vote_all([FACT, {"failure": "ValueError: no"}, FACT], store=store)
    assert texts(outcomes) == {"rank 1 could not set up: ValueError: no"}
    assert store._values == {}


@pytest.mark.plan(66)
def test_the_minority_is_named_with_both_values() -> None:
    outcomes = vote_all([FACT, FACT, FACT | {"slot_nbytes": 2048, "codec": "msgpack"}, FACT])
    (text,) = texts(outcomes)
    assert text.startswith("rank 2 could not set up: ")
    assert 'codec is "msgpack", but ranks 0-1, 3 have "pickle"' in text
    assert "slot_nbytes is 2048, but ranks 0-1, 3 have 1024" in text


def test_between_two_ranks_the_lower_is_right() -> None:
    assert compare_facts([FACT, FACT | {"wire": 2}]) == {"failures": {1: "wire is 2, but rank 0 has 1"}}


def test_a_rank_that_does_not_come_is_named_at_the_deadline_and_a_late_comer_fails_at_once() -> None:
    store = LocalStore()
    start = time.monotonic()
    outcomes = vote_all([FACT, None, FACT], timeout_s=0.3, store=store)
    assert 0.25 < time.monotonic() - start < 2
    (text,) = texts([outcomes[0], outcomes[2]])
    assert text == "rank 1 could not set up: never came: nothing heard within 0.3 s"
    start = time.monotonic()
    with pytest.raises(SetupError) as caught:
        Ballot(store, "stage", 1, 3).vote(FACT, compare_facts, Deadline(60))
    assert str(caught.value) == text
    assert time.monotonic() - start < 0.2
    assert store._values == {}


def test_a_rank_that_fails_before_the_others_come_waits_for_nobody() -> None:
    store = LocalStore()
    failing = Ballot(store, "stage", 1, 2)
    failing.check()
    failing.fail("out of luck")
    failing.fail("again")
    with pytest.raises(SetupError, match="rank 1 could not set up: out of luck"):
        Ballot(store, "stage", 0, 2).check()
    with pytest.raises(SetupError, match="out of luck"):
        Ballot(store, "stage", 0, 2).vote({}, always_fine, Deadline(60))


def test_a_rank_that_dies_between_opening_and_its_vote_is_named_before_the_deadline() -> None:
    class Met(ThreadsTransport):
        """Has met rank 1, and knows that it has died."""

        def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
            pass

        def peers(self) -> list[PeerState]:
            return [PeerState.ALIVE, PeerState.DEAD, PeerState.UNKNOWN]

    context = replace(local_contexts(1)[0], world_size=3)
    with pytest.raises(SetupError) as caught:
        open_everywhere(Met(), "met", GatherSettings(), context, Deadline(60))
    assert caught.value.failures == {1: "its process has ended"}


def test_what_goes_wrong_while_deciding_is_an_error_on_all_with_its_cause_where_it_happened() -> None:
    def broken(facts: Sequence[Fact]) -> Decision:
        raise ZeroDivisionError("in decide")

    store = LocalStore()
    outcomes = vote_all([FACT] * 3, broken, store=store)
    (text,) = texts(outcomes)
    assert "could not set up: ZeroDivisionError: in decide, while comparing" in text
    causes = [type(outcome.__cause__) for outcome in outcomes if isinstance(outcome, SetupError)]
    assert sorted(cause.__name__ for cause in causes) == ["NoneType", "NoneType", "ZeroDivisionError"]
    assert store._values == {}


def test_a_rank_that_has_not_decided_at_the_deadline_is_named() -> None:
    release = threading.Event()

    def slow(facts: Sequence[Fact]) -> Decision:
        release.wait(30)
        return {}

    store = LocalStore()
    waiting = Background(lambda _: Ballot(store, "stage", 0, 2).vote(FACT, slow, Deadline(0.2))).start()
    wait_until(lambda: store.check(["stage/arrived"]))
    late = Background(lambda _: Ballot(store, "stage", 1, 2).vote(FACT, slow, Deadline(60))).start()
    assert waiting.wait(10)
    release.set()
    assert late.wait(10)
    assert store._values == {}
    for call in (waiting, late):
        with pytest.raises(SetupError) as caught:
            call.result()
        assert "rank 1 could not set up: came last, and so was to decide" in str(caught.value)
        assert "within 0.2 s: raise timeout_s" in str(caught.value)


def test_where_nobody_knows_who_was_to_decide_all_ranks_are_named() -> None:
    store = LocalStore()
    store.set("stage/fact/1", "{}")  # by a rank that then died
    with pytest.raises(
        SetupError, match=r"ranks 0-1 could not set up: all ranks came, but the last .* raise timeout_s"
    ):
        Ballot(store, "stage", 0, 2).vote({}, always_fine, Deadline(0.1))


def test_a_decision_that_comes_shortly_after_the_deadline_counts() -> None:
    class Watched(LocalStore):
        overdue = False

        def check(self, keys: list[str], /) -> bool:
            found = super().check(keys)
            if self.overdue:
                self.compare_set("stage/decision", "", '{"late": true}')
            self.overdue = keys == ["stage/fact/1"]  # which a rank asks when its deadline has passed
            return found

    store = Watched()
    store.set("stage/fact/1", "{}")
    assert Ballot(store, "stage", 0, 2).vote({}, always_fine, Deadline(0.1)) == {"late": True}


@pytest.mark.parametrize(
    "fingerprint", [b"bytes", {1: {2}}, "x" * 2_000_000, 10**5000], ids=lambda value: str(type(value))
)
def test_a_fact_that_cannot_be_json_is_an_error_on_all_with_its_cause_where_it_is(fingerprint: object) -> None:
    outcomes = vote_all([FACT, FACT | {"codec": fingerprint}, FACT], timeout_s=60)
    (text,) = texts(outcomes)
    assert text.startswith("rank 1 could not set up: settings or fingerprints that cannot be compared as JSON: ")
    assert len(text) < 5000
    causes = [outcome.__cause__ for outcome in outcomes if isinstance(outcome, SetupError)]
    assert [cause is not None for cause in causes] == [False, True, False]
    assert isinstance(causes[1], TypeError | ValueError)


def test_texts_of_many_ranks_are_shortened_until_the_store_takes_them() -> None:
    class BoundedStore(LocalStore):
        def set(self, key: str, value: Any, /) -> None:
            assert len(value) < 5 << 20
            super().set(key, value)

    outcomes = vote_all([{"failure": f"{rank}" + "\u20ac" * 100_000} for rank in range(40)], store=BoundedStore())
    assert all(isinstance(outcome, SetupError) for outcome in outcomes)
    assert isinstance(outcomes[0], SetupError)
    assert set(outcomes[0].failures) == set(range(40))
    assert all(text.startswith(str(rank)) for rank, text in outcomes[0].failures.items())


def test_long_values_that_differ_are_named_in_short_with_the_ranks_that_have_them() -> None:
    failures = compare_facts([FACT | {"codec": "a" * 100_000}, FACT | {"codec": "b" * 100_000}])["failures"]
    assert len(failures[1]) < 3000
    assert "100002 characters in all" in failures[1]
    assert ", but rank 0 has " in failures[1]


class BrokenStore(LocalStore):
    """Its connection is lost."""

    def set(self, key: str, value: Any, /) -> None:
        raise RuntimeError("Broken pipe")

    def check(self, keys: list[str], /) -> bool:
        raise RuntimeError("Broken pipe")


def test_a_store_that_fails_is_a_setup_error_with_its_cause() -> None:
    ballot = Ballot(BrokenStore(), "stage", 2, 3)
    for call in (lambda: ballot.vote(FACT, compare_facts, Deadline(60)), ballot.check):
        with pytest.raises(
            SetupError, match="rank 2 could not set up: the job's store failed: RuntimeError: Broken"
        ) as caught:
            call()
        assert isinstance(caught.value.__cause__, RuntimeError)
    ballot.fail("cannot be told")


class SilentStore(LocalStore):
    """Its host is stopped: calls block until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.asked = threading.Event()

    def set(self, key: str, value: Any, /) -> None:
        self._block()
        super().set(key, value)

    def check(self, keys: list[str], /) -> bool:
        self._block()
        return super().check(keys)

    def compare_set(self, key: str, expected: Any, desired: Any, /) -> bytes:
        self._block()
        return super().compare_set(key, expected, desired)

    def _block(self) -> None:
        self.asked.set()
        self.goes_on.wait(60)


@pytest.fixture
def silent_store() -> Iterator[SilentStore]:
    """A store that does not answer until the test is over, and then all threads that wait for it end."""
    before = set(threading.enumerate())
    store = SilentStore()
    yield store
    store.goes_on.set()
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_store_that_does_not_answer_is_said_so_at_the_deadline_naming_no_other_rank(
    silent_store: SilentStore,
) -> None:
    started = time.monotonic()
    with pytest.raises(SetupError) as caught:
        Ballot(silent_store, "stage", 1, 3).vote(FACT, compare_facts, Deadline(0.2))
    assert time.monotonic() - started < 5
    assert list(caught.value.failures) == [1]
    assert "the job's store does not answer: not within 0.2 s" in str(caught.value)


def test_a_rank_that_gave_up_on_the_store_tells_the_others_when_it_goes_on(silent_store: SilentStore) -> None:
    LocalStore.set(silent_store, "stage/fact/1", "{}")
    LocalStore.set(silent_store, "stage/arrived", "1")  # so that the rank that gives up would be the one to decide
    with pytest.raises(SetupError, match="does not answer"):
        Ballot(silent_store, "stage", 0, 2).vote({}, always_fine, Deadline(0.1))
    silent_store.goes_on.set()
    wait_until(lambda: silent_store.check(["stage/left"]))
    with pytest.raises(SetupError, match="rank 0 could not set up: gave up before the ranks had decided"):
        Ballot(silent_store, "stage", 1, 2).check()


def test_nothing_that_a_rank_does_before_it_votes_waits_for_a_silent_store(silent_store: SilentStore) -> None:
    ballot = Ballot(silent_store, "stage", 1, 3)
    before = threading.active_count()
    started = time.monotonic()
    for _ in range(5):
        ballot.check()
    assert threading.active_count() == before + 1
    ballot.fail("cannot be told")
    assert time.monotonic() - started < 5


def test_ctrl_c_ends_a_vote_on_a_silent_store(silent_store: SilentStore) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt(stop: threading.Event) -> None:
        assert silent_store.asked.wait(30)
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = Background(interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Ballot(silent_store, "stage", 0, 2).vote(FACT, compare_facts, Deadline(60))
    assert time.monotonic() - started < 10
    assert interrupter.wait(10)


def test_ctrl_c_during_a_vote_is_told_to_the_others_and_leaves_no_key() -> None:
    store = LocalStore()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt(stop: threading.Event) -> None:
        wait_until(lambda: store.check(["stage/arrived"]))
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = Background(interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        Ballot(store, "stage", 0, 2).vote(FACT, compare_facts, Deadline(60))
    assert interrupter.wait(10)
    with pytest.raises(SetupError, match="rank 0 could not set up: KeyboardInterrupt while waiting for the others"):
        Ballot(store, "stage", 1, 2).vote(FACT, compare_facts, Deadline(60))
    wait_until(lambda: store._values == {})


def test_hundreds_of_ranks_in_threads_agree() -> None:
    store = LocalStore()
    decisions = vote_all([FACT] * 300, timeout_s=60, store=store)
    assert all(decision == decisions[0] for decision in decisions)
    assert isinstance(decisions[0], dict)
    assert store._values == {}


STOPPED_STORE = """
import os, signal, sys, time
from torch._C._distributed_c10d import TCPStore
from gather_core import SetupError
from gather_core.deadline import Deadline
from gather_core.handshake import Ballot

store = TCPStore(*sys.argv[1].split(":")[:1], int(sys.argv[1].split(":")[1]), None, False)
os.kill(int(sys.argv[2]), signal.SIGSTOP)
started = time.monotonic()
try:
    Ballot(store, "stage", 0, 2).vote({}, dict, Deadline(0.2))
except SetupError as exc:
    print("does not answer" in str(exc), time.monotonic() - started < 5)
"""
STORE_HOST = """
import socket, sys
from torch._C._distributed_c10d import TCPStore

listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
store = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())
print(port, flush=True)
sys.stdin.read()
"""


def test_a_process_whose_store_host_is_stopped_fails_in_time_and_ends_cleanly() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STORE_HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout is not None
        try:
            port = host.stdout.readline().strip()
            assert run_python(STOPPED_STORE, f"127.0.0.1:{port}", str(host.pid)) == "True True"
        finally:
            host.kill()
