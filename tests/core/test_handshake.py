"""Round 0: the ranks agree, or all raise the same, and nothing is left in the store."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from gather_core import (
    Capabilities,
    Codec,
    Frames,
    Gatherer,
    GroupContext,
    Limits,
    SetupError,
    UntrustedCodecError,
)
from gather_core.deadline import Deadline
from gather_core.handshake import Ballot, Decision, Fact, always_fine, compare_facts, group_id
from gather_core.local_store import LocalStore
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport

FACT: Fact = {"wire": 1, "codec": "pickle", "slot_nbytes": 1024, "available": ["a", "b"], "host": "x"}


class NoteCodec(Codec):
    """The object's repr."""

    name = "note-in-test"

    def __init__(self, fingerprint: str = "note") -> None:
        self._fingerprint = fingerprint

    def encode(self, obj: object) -> Frames:
        return [repr(obj).encode()]

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        return bytes(frames[0]).decode()

    def fingerprint(self) -> str:
        return self._fingerprint


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


def texts(outcomes: Sequence[object]) -> set[str]:
    assert all(isinstance(outcome, SetupError) for outcome in outcomes), outcomes
    return {str(outcome) for outcome in outcomes}


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_ranks_that_agree_get_one_decision_and_leave_no_key(world_size: int) -> None:
    store = LocalStore()
    decisions = vote_all([FACT] * world_size, store=store)
    assert all(decision == decisions[0] for decision in decisions)
    assert isinstance(decisions[0], dict)
    assert decisions[0]["available"] == ["a", "b"]
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
    decision = compare_facts([FACT, FACT | {"available": ["c", "b"]}, FACT | {"host": "y"}])
    assert decision["available"] == ["b"]


def test_a_failure_of_one_rank_is_raised_on_all_and_leaves_no_key() -> None:
    store = LocalStore()
    outcomes = vote_all([FACT, {"failure": "ValueError: no"}, FACT], store=store)
    assert texts(outcomes) == {"rank 1 could not set up: ValueError: no"}
    assert store._values == {}


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


def test_when_all_have_come_but_nobody_decides_the_error_still_says_something() -> None:
    def broken(facts: Sequence[Fact]) -> Decision:
        raise ZeroDivisionError("in decide")

    outcomes = vote_all([FACT] * 3, broken, timeout_s=0.3)
    assert sum(isinstance(outcome, ZeroDivisionError) for outcome in outcomes) == 1
    assert "" not in texts([outcome for outcome in outcomes if not isinstance(outcome, ZeroDivisionError)])


def construct_all(settings: Sequence[dict[str, object]], timeout_s: float = 5) -> list[object]:
    """Constructs with one thread per rank and gathers once."""

    def body(member: ThreadRank) -> object:
        arguments: dict[str, object] = {"transport": "threads", "codec": NoteCodec(), "timeout_s": timeout_s}
        with Gatherer(**(arguments | settings[member.rank]), group=member) as gatherer:  # type: ignore[arg-type]
            return gatherer.all_gather(member.rank)

    return list(ThreadGroup(len(settings)).run(body))


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"slot_nbytes": 4096}, "slot_nbytes is 4096"),
        ({"codec": NoteCodec("other")}, 'codec is "other"'),
        ({"overflow": "error"}, 'overflow is "error"'),
        ({"limits": Limits(num_frames=7)}, '"num_frames": 7'),
        ({"payload_checksum": False}, "payload_checksum is false"),
    ],
)
def test_a_setting_that_differs_on_one_rank_is_an_error_on_all_naming_it(other: dict[str, object], text: str) -> None:
    (message,) = texts(construct_all([{}, {}, other]))
    assert message.startswith("rank 2 could not set up: ")
    assert text in message


class UglyError(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class UglyCodec(NoteCodec):
    """Raises what cannot be printed."""

    def fingerprint(self) -> str:
        raise UglyError


@pytest.mark.parametrize(
    "bad",
    [
        {"slot_nbytes": 1023},
        {"slot_nbytes": "1024"},
        {"slot_nbytes": True},
        {"overflow": "grow"},
        {"overflow": ["error"]},
        {"limits": None},
        {"limits": {"num_frames": 1}},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": "5"},
        pytest.param({"timeout_s": 10**400}, id="timeout beyond float"),
        {"codec": 5},
        {"codec": "no-such"},
        {"codec": "nosuch"},
        {"codec": "msgpack:colour=1"},
        {"transport": "threads:fast=true"},
        {"tensor_device": "mps"},
        {"payload_checksum": 1},
        pytest.param({"codec": UglyCodec()}, id="an error without text"),
    ],
)
def test_a_bad_setting_on_one_rank_is_an_error_on_all_with_its_cause_where_it_is(bad: dict[str, object]) -> None:
    outcomes = construct_all([{}, bad, {}], timeout_s=2)
    (message,) = texts(outcomes)
    assert message.startswith("rank 1 could not set up: ")
    assert "never came" not in message
    causes = [outcome.__cause__ for outcome in outcomes if isinstance(outcome, BaseException)]
    assert causes[0] is None
    assert causes[1] is not None
    assert causes[2] is None


@pytest.mark.parametrize("codec", ["pickle", "pickle+zstd"])
def test_where_code_is_forbidden_a_codec_that_can_execute_it_is_refused_by_all(
    monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setenv("GATHER_FORBID_CODE", "1")
    for outcome in construct_all([{"codec": codec}] * 2):
        assert isinstance(outcome, SetupError), repr(outcome)
        assert isinstance(outcome.__cause__, UntrustedCodecError)
        assert "GATHER_FORBID_CODE" in str(outcome)


def test_where_code_is_forbidden_a_codec_that_builds_data_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATHER_FORBID_CODE", "1")
    assert construct_all([{"codec": "msgpack+zstd"}] * 2) == [[0, 1]] * 2


class StuckTransport(ThreadsTransport):
    """Does not open on the last rank."""

    name = "threads"
    capabilities = Capabilities(locality="process", elastic_slots=True)

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if context.rank == context.world_size - 1:
            raise OSError("no such cable")
        super().open(context, slot_nbytes, timeout_s=timeout_s)


def test_a_transport_that_does_not_open_on_one_rank_is_an_error_on_all_and_the_next_gatherer_works() -> None:
    team = ThreadGroup(3)

    def body(member: ThreadRank) -> object:
        with pytest.raises(SetupError) as caught:
            Gatherer(NoteCodec(), StuckTransport(), group=member, timeout_s=5)
        with Gatherer(NoteCodec(), "threads", group=member, timeout_s=5) as gatherer:
            return str(caught.value), type(caught.value.__cause__), gatherer.all_gather(1)

    text = "rank 2 could not set up: OSError: no such cable"
    outcomes = team.run(body)
    assert outcomes == [(text, OSError if rank == 2 else type(None), ["1"] * 3) for rank in range(3)]
    left = [key for key in team.store._values if "arrivals" not in key]
    assert left == [], "keys of round 0 were left behind"


def test_construction_names_a_rank_that_does_not_come() -> None:
    def body(member: ThreadRank) -> object:
        if member.rank == 1:
            return None
        with pytest.raises(SetupError) as caught:
            Gatherer(NoteCodec(), "threads", group=member, timeout_s=0.3)
        return str(caught.value)

    text = "rank 1 could not set up: never came: nothing heard within 0.3 s"
    assert ThreadGroup(3).run(body) == [text, None, text]


def test_two_gatherers_of_one_group_do_not_meet() -> None:
    def body(member: ThreadRank) -> object:
        with (
            Gatherer(NoteCodec(), "threads", group=member, timeout_s=5) as first,
            Gatherer(NoteCodec(), "threads", group=member, timeout_s=5) as second,
        ):
            return second.all_gather("b"), first.all_gather("a"), second.all_gather("c")

    assert ThreadGroup(2).run(body) == [(["'b'"] * 2, ["'a'"] * 2, ["'c'"] * 2)] * 2


def test_no_thread_outlives_its_gatherers() -> None:
    before = set(threading.enumerate())
    construct_all([{}, {}])
    assert set(threading.enumerate()) == before
