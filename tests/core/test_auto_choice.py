"""`auto`: all ranks choose one transport together, from what each can use and from where they are, and say why."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from gather_core import (
    Capabilities,
    Gatherer,
    GroupContext,
    Transport,
    Trust,
    auto_choice,
    process_group,
    register_transport,
    registry,
)
from gather_core.auto_choice import Candidate, Offer, choose, offers
from gather_transports.single import SingleTransport
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport

ONE_HOST, TWO_HOSTS = (0, 0, 0), (0, 1, 0)
a_wire_is_open = threading.Event()


class MemoryTransport(ThreadsTransport):
    """Stands in for one that needs a common memory; ranks may lack it, or fail to open it."""

    name = "memory_in_test"
    capabilities = replace(ThreadsTransport.capabilities, locality="host")
    lacks: tuple[int, ...] = ()
    does_not_open: tuple[int, ...] = ()

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        assert context is not None
        assert context.hosts == () or len(context.hosts) == context.world_size
        return "no posix_fallocate" if context.rank in cls.lacks else None

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if context.rank in self.does_not_open:
            raise OSError("no space left")
        super().open(context, slot_nbytes, timeout_s=timeout_s)
        if type(self) is WireTransport:
            a_wire_is_open.set()

    def close(self) -> None:
        if self.does_not_open and self._rank == 2 and type(self) is MemoryTransport:
            a_wire_is_open.wait(5)  # the others may be that far before this rank has closed the first
        super().close()


class WireTransport(MemoryTransport):
    """Stands in for one that works between any hosts."""

    name = "wire_in_test"
    capabilities = replace(ThreadsTransport.capabilities, locality="any")


class JointTransport(WireTransport):
    """Stands in for one that joins two; its capabilities depend on those."""

    name = "hierarchical"

    def __init__(self, inner: Transport, outer: Transport) -> None:
        super().__init__()
        self.joined = (inner, outer)

    @property
    def spec(self) -> str:
        return "+".join(part.spec for part in self.joined)


@pytest.fixture(autouse=True)
def candidates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An order as that of the transports that these stand in for."""
    monkeypatch.setattr(registry._transports, "registered", {})
    a_wire_is_open.clear()
    for cls in (MemoryTransport, WireTransport, JointTransport):
        register_transport(cls.name, cls, replace=True)
        monkeypatch.setattr(cls, "lacks", ())
        monkeypatch.setattr(cls, "does_not_open", ())
    order = (
        Candidate("single", "one rank"),
        Candidate("memory_in_test", "one host"),
        Candidate("memory_in_test+wire_in_test", "several hosts"),
        Candidate("wire_in_test", "anywhere"),
    )
    monkeypatch.setattr(auto_choice, "AUTO_ORDER", order)
    return iter(())


def auto_on_threads(monkeypatch: pytest.MonkeyPatch, hosts: Sequence[int] = ONE_HOST) -> list[Any]:
    """What each rank, a thread, says of its Gatherer; or what it raised."""

    def join(group: Any) -> GroupContext:
        return replace(ThreadsTransport.join(group), hosts=tuple(hosts))

    monkeypatch.setattr(process_group, "join_process_group", join)

    def body(member: ThreadRank) -> str:
        with Gatherer(group=member, timeout_s=10) as gatherer:
            assert gatherer.all_gather(member.rank) == list(range(len(hosts)))
            return gatherer.describe()

    return [str(outcome) for outcome in ThreadGroup(len(hosts)).run(body)]


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ([0], "transport single (auto: single, as there is one rank)"),
        (ONE_HOST, "transport memory_in_test (auto: memory_in_test, as all 3 ranks are on one host)"),
        (
            TWO_HOSTS,
            "transport memory_in_test+wire_in_test (auto: memory_in_test+wire_in_test, as the 3 ranks are on 2 hosts)",
        ),
    ],
)
def test_the_hosts_decide_and_describe_says_so(
    monkeypatch: pytest.MonkeyPatch, hosts: Sequence[int], said: str
) -> None:
    for text in auto_on_threads(monkeypatch, hosts):
        assert said in text


def test_what_one_rank_lacks_nobody_chooses_and_describe_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryTransport, "lacks", (2,))
    for text in auto_on_threads(monkeypatch):
        assert (
            "transport wire_in_test (auto: wire_in_test, the first that all 3 ranks can use; "
            "memory_in_test: rank 2: no posix_fallocate)"
        ) in text


def test_what_does_not_open_on_one_rank_is_followed_by_the_next_on_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MemoryTransport, "does_not_open", (1,))
    why = "memory_in_test did not open: rank 1 could not set up: OSError: no space left"
    for text in auto_on_threads(monkeypatch):
        assert f"(auto: wire_in_test, the first that all 3 ranks can use; {why})" in text
    assert why in caplog.text


def test_where_nothing_opens_the_last_failure_is_raised_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryTransport, "does_not_open", (1,))
    monkeypatch.setattr(WireTransport, "does_not_open", (0,))
    assert set(auto_on_threads(monkeypatch)) == {"rank 0 could not set up: OSError: no space left"}


def test_where_nothing_can_be_used_every_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryTransport, "lacks", (0, 1, 2))
    monkeypatch.setattr(WireTransport, "lacks", (1,))
    (text,) = set(auto_on_threads(monkeypatch))
    assert text == (
        "ranks 0-2 could not set up: auto found no transport that all ranks can use; "
        "memory_in_test: ranks 0-2: no posix_fallocate; wire_in_test: rank 1: no posix_fallocate"
    )


def offers_of_one(**changes: Any) -> dict[str, Offer]:
    context = ThreadsTransport.join(ThreadGroup(3).member(0))
    return offers(replace(context, **changes))


def test_for_one_rank_and_for_more_different_candidates_are_asked() -> None:
    assert list(offers_of_one(world_size=1)) == ["single"]
    assert list(offers_of_one()) == ["memory_in_test", "memory_in_test+wire_in_test", "wire_in_test"]


def test_what_a_joint_transport_is_made_of_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryTransport, "lacks", (0,))
    assert offers_of_one()["memory_in_test+wire_in_test"]["reason"] == "memory_in_test: no posix_fallocate"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("no_such_transport", "not installed"),
        ("no_such_transport+gloo", "not installed"),
        ("threads", "its ranks must be in one process"),
        ("broken_in_test", "RuntimeError: cannot be asked"),
    ],
)
def test_a_candidate_that_cannot_be_used_is_passed_over_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, spec: str, reason: str
) -> None:
    class BrokenTransport(SingleTransport):
        name = "broken_in_test"
        capabilities = Capabilities(locality="any")

        @classmethod
        def unavailable(cls, context: GroupContext | None) -> str | None:
            raise RuntimeError("cannot be asked")

    register_transport("broken_in_test", BrokenTransport)
    monkeypatch.setattr(auto_choice, "AUTO_ORDER", (Candidate(spec, "anywhere"),))
    assert offers_of_one()[spec]["reason"] == reason


def test_what_serves_only_groups_of_its_own_is_not_named_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    order = (Candidate("memory_in_test", "anywhere", needs_its_group=True), Candidate("wire_in_test", "anywhere"))
    monkeypatch.setattr(auto_choice, "AUTO_ORDER", order)
    assert list(offers_of_one()) == ["memory_in_test", "wire_in_test"]
    monkeypatch.setattr(MemoryTransport, "lacks", (0,))
    assert list(offers_of_one()) == ["wire_in_test"]


def test_where_code_is_forbidden_auto_passes_over_what_can_execute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WireTransport, "capabilities", Capabilities(locality="any", trust=Trust.CODE))
    assert offers_of_one()["wire_in_test"]["reason"] is None
    monkeypatch.setenv("GATHER_FORBID_CODE", "1")
    assert "GATHER_FORBID_CODE forbids" in offers_of_one()["wire_in_test"]["reason"]


def test_a_transport_of_one_host_is_not_chosen_for_two_whatever_the_order_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto_choice, "AUTO_ORDER", (Candidate("memory_in_test", "anywhere"),))
    offered = [offers_of_one()] * 3
    assert [option["spec"] for option in choose(offered, ONE_HOST)] == ["memory_in_test"]
    assert choose(offered, TWO_HOSTS) == []


def test_the_choice_depends_on_nothing_but_the_offers_and_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [offers_of_one()] * 3
    chosen = choose(offered, ONE_HOST)
    monkeypatch.setattr(auto_choice, "AUTO_ORDER", ())
    monkeypatch.setattr(registry._transports, "registered", {})
    assert choose(offered, ONE_HOST) == chosen


def test_reasons_of_many_ranks_stay_short() -> None:
    offered = [{"a": {"where": "anywhere", "reason": f"reason {rank} {'x' * 200}"}} for rank in range(2000)]
    (option,) = choose(offered, [0] * 2000)
    assert len(option["reason"]) <= 1024


def test_auto_without_the_stand_ins_offers_gloo_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [candidate.spec for candidate in auto_choice.AUTO_ORDER][:: len(auto_choice.AUTO_ORDER) - 1] == [
        "single",
        "gloo",
    ]
