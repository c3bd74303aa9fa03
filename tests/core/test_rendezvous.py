"""Construction over threads: what differs or fails on one rank is an error on all, and names it."""

import threading
from collections.abc import Sequence

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
from gather_core.handshake import Fact
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport
from thread_gatherers import texts

FACT: Fact = {"wire": 1, "codec": "pickle", "slot_nbytes": 1024, "auto": {}, "host": "x"}


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
