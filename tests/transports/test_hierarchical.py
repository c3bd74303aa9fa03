"""`hierarchical` as any transport, over threads that stand for ranks of several hosts."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from gather_core import (
    AbortedError,
    Gatherer,
    GatherError,
    PeerLostError,
    RemoteEncodeError,
    SetupError,
    SlotOverflowError,
    TransportError,
    TransportTimeoutError,
)
from gather_core.registry import get_transport
from gather_core.testing import TransportContract
from gather_core.transport import GroupContext, Transport
from gather_transports import host_blocks
from gather_transports.hierarchical import HierarchicalTransport
from gather_transports.host_blocks import LONGEST_FAILURE_NBYTES, raise_failure, write_failure
from gather_transports.host_failures import renumbered
from gather_transports.threads import ThreadGroup, ThreadsTransport


def contexts_on(hosts: Sequence[int]) -> list[GroupContext]:
    """Of a group of threads, told that they are on these hosts."""
    team = ThreadGroup(len(hosts))
    places = [ThreadsTransport.join(team.member(rank)) for rank in range(len(hosts))]
    return [replace(place, hosts=tuple(hosts), scope="test") for place in places]


class OnHosts(TransportContract):
    hosts: ClassVar[tuple[int, ...]]
    """Of the ranks, as many as there are."""

    def make_transport(self) -> Transport:
        return HierarchicalTransport(ThreadsTransport(), ThreadsTransport())

    def contexts(self, world_size: int) -> Sequence[GroupContext]:
        return contexts_on(self.hosts[:world_size])


class TestUnevenHosts(OnHosts):
    world_sizes = (2, 6)
    hosts: ClassVar = (0, 1, 0, 2, 1, 0)


class TestOneHost(OnHosts):
    world_sizes = (1, 3)
    hosts: ClassVar = (4, 4, 4)


class TestOneRankPerHost(OnHosts):
    world_sizes = (3,)
    hosts: ClassVar = (2, 0, 1)


class TestBetweenHostsOverGloo(OnHosts):
    world_sizes = (4,)
    hosts: ClassVar = (0, 0, 1, 1)

    @pytest.fixture(autouse=True)
    def loopback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def make_transport(self) -> Transport:
        return get_transport("threads+gloo")


HOSTS = (0, 1, 0, 2, 1, 0)


class Between(ThreadsTransport):
    """Counts what the leaders hand over, and fails where a test says so."""

    capabilities = replace(ThreadsTransport.capabilities, elastic_slots=False)
    sent_nbytes: ClassVar[list[int]] = []
    hook: ClassVar[Callable[["Between"], None] | None] = None

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if Between.hook is not None:
            Between.hook(self)
        Between.sent_nbytes.append(nbytes)
        return super().all_gather_slots(nbytes, timeout_s=timeout_s)


def _join_within(group: object, *, timeout_s: float) -> GroupContext:
    return replace(ThreadsTransport.join_within(group, timeout_s=timeout_s), hosts=HOSTS)


def _stay_away(*_: Any, **__: Any) -> None:
    threading.Event().wait(3)


class OverThreads(HierarchicalTransport):
    """Joins groups of threads, and takes their ranks for those of three hosts."""

    def __init__(self) -> None:
        super().__init__(ThreadsTransport(), Between())
        self.join_within = _join_within  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _unhooked() -> Any:
    Between.sent_nbytes = []
    yield
    Between.hook = None


def outcomes(body: Callable[[Gatherer], Any], **options: Any) -> list[Any]:
    """What the body returns or raises on each rank."""

    def on_rank(member: Any) -> Any:
        with Gatherer(transport=OverThreads(), group=member, timeout_s=30, **options) as gatherer:
            return body(gatherer)

    return ThreadGroup(len(HOSTS)).run(on_rank)


def objects(rank: int) -> list[Any]:
    """Small, beyond the slot, beyond a chunk on one rank, and nothing."""
    return [{"rank": rank}, b"x" * (40_000 + rank), bytes(1_300_000 + rank if rank in (0, 4) else rank), None]


def test_every_operation_is_exact_over_uneven_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_blocks, "LANDING_NBYTES", 1 << 19)
    monkeypatch.setattr(host_blocks, "LEAST_CHUNK_NBYTES", 1 << 16)

    def body(gatherer: Gatherer) -> Any:
        rank = gatherer.rank
        return (
            [gatherer.all_gather(obj) for obj in objects(rank)],
            [gatherer.gather(obj, dst=4) for obj in objects(rank)],
            [gatherer.broadcast(obj, src=3) for obj in objects(rank)],
        )

    columns = [list(column) for column in zip(*map(objects, range(len(HOSTS))), strict=True)]
    for rank, (gathered, at_4, from_3) in enumerate(outcomes(body)):
        assert gathered == columns
        assert at_4 == (columns if rank == 4 else [None] * 4)
        assert from_3 == objects(3)


def test_what_leaves_a_host_is_about_what_its_ranks_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadsTransport, "all_gather_exact", Transport.all_gather_exact)  # through the slots, counted
    nbytes = 3_000_000
    outcomes(lambda gatherer: len(gatherer.all_gather(bytes(nbytes))), codec="raw")
    small = [sent for sent in Between.sent_nbytes if sent < 20_000]
    assert sum(Between.sent_nbytes) < 1.01 * len(HOSTS) * nbytes
    assert sum(Between.sent_nbytes) >= len(HOSTS) * nbytes
    assert len(small) >= 3


def test_a_routed_payload_goes_to_its_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    exact = ThreadsTransport.all_to_all_exact

    def recorded(self: ThreadsTransport, parts: Any, matrix: Any, **options: Any) -> Any:
        sent.append(matrix)
        return exact(self, parts, matrix, **options)

    monkeypatch.setattr(Between, "all_to_all_exact", recorded)
    outcomes(lambda gatherer: gatherer.gather(bytes(1_000_000), dst=3), codec="raw")
    assert sent
    assert all(row[host] == 0 for matrix in sent for row in matrix for host in (0, 1))  # rank 3 is on host 2


def test_objects_that_cannot_be_encoded_fail_every_rank_of_every_host_and_the_group_goes_on() -> None:
    def body(gatherer: Gatherer) -> Any:
        with pytest.raises(RemoteEncodeError) as caught:
            gatherer.all_gather((lambda: 1) if gatherer.rank == 4 else 1)
        return list(caught.value.failures), gatherer.all_gather(gatherer.rank)

    assert outcomes(body) == [([4], list(range(len(HOSTS))))] * len(HOSTS)


def test_overflow_is_an_error_on_every_rank() -> None:
    def body(gatherer: Gatherer) -> Any:
        with pytest.raises(SlotOverflowError) as caught:
            gatherer.all_gather(bytes(5000 if gatherer.rank == 5 else 1))
        return list(caught.value.nbytes)

    assert outcomes(body, overflow="error", slot_nbytes=1024) == [[5]] * len(HOSTS)


def test_a_rank_that_gives_up_is_named_on_every_host() -> None:
    def body(gatherer: Gatherer) -> Any:
        gatherer.all_gather(0)
        if gatherer.rank == 2:
            raise ZeroDivisionError("by design")
        gatherer.all_gather(1)

    found = outcomes(body)
    assert isinstance(found[2], ZeroDivisionError)
    for rank in (0, 1, 3, 4, 5):
        assert isinstance(found[rank], AbortedError), found[rank]
        assert found[rank].rank == 2


def without_notes(body: Callable[[Transport], Any]) -> list[Any]:
    """What the body returns or raises on each rank's transport, opened without a Gatherer to pass word around."""
    contexts = contexts_on(HOSTS)
    found: list[Any] = [None] * len(HOSTS)

    def on_rank(context: GroupContext) -> None:
        transport = HierarchicalTransport(ThreadsTransport(), Between())
        try:
            transport.open(context, 1024, timeout_s=20)
            found[context.rank] = body(transport)
        except GatherError as exc:
            found[context.rank] = exc
        finally:
            transport.close()

    threads = [threading.Thread(target=on_rank, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_rank_that_never_comes_is_named_in_group_ranks_on_every_host() -> None:
    def body(transport: Transport) -> Any:
        transport.slot(10)
        return transport.all_gather_slots(10, timeout_s=0.3) if transport.rank != 4 else None

    found = without_notes(body)
    for rank in (0, 1, 2, 3, 5):
        assert isinstance(found[rank], TransportTimeoutError), found[rank]
        assert found[rank].missing == (4,), found[rank]
        assert "rank 4 did not come" in str(found[rank])


def test_what_goes_wrong_between_hosts_is_told_inside_them() -> None:
    def lost(outer: Between) -> None:
        if outer.rank == 1:
            raise TransportError("the cable is out")

    def body(transport: Transport) -> Any:
        transport.slot(10)
        Between.hook = lost
        return transport.all_gather_slots(10, timeout_s=0.5)

    found = without_notes(body)
    assert all(isinstance(outcome, TransportError) for outcome in found)
    for rank in (1, 4):
        assert "the cable is out" in str(found[rank])


@pytest.mark.parametrize("stuck", [1, 3, 4])
def test_a_rank_that_does_not_open_is_named_in_group_ranks_by_all_others(stuck: int) -> None:
    """A leader, one that is alone on its host, and a follower."""

    def on_rank(member: Any) -> Any:
        transport = OverThreads()
        if member.rank == stuck:
            transport.open = _stay_away  # type: ignore[method-assign]
        with Gatherer(transport=transport, group=member, timeout_s=1):
            return None

    for rank, outcome in enumerate(ThreadGroup(len(HOSTS)).run(on_rank)):
        if rank != stuck:
            assert isinstance(outcome, SetupError), outcome
            assert list(outcome.failures) == [stuck], outcome


def test_a_rank_of_which_only_its_leader_knows_that_it_is_late_is_not_taken_for_the_leader() -> None:
    """Rank 5 enters long before its leader, which then waits for rank 2."""
    early = threading.Event()

    def body(transport: Transport) -> Any:
        transport.slot(10)
        if transport.rank == 5:
            early.set()
            return transport.all_gather_slots(10, timeout_s=0.6)
        early.wait(10)
        threading.Event().wait(0.3)
        return None if transport.rank == 2 else transport.all_gather_slots(10, timeout_s=0.6)

    found = without_notes(body)
    assert 0 not in found[5].missing
    assert found[0].missing == (2,)


def test_a_transport_of_another_gatherer_is_refused_and_left_alone() -> None:
    def on_rank(member: Any) -> Any:
        inner = ThreadsTransport()
        with Gatherer(transport=inner, group=member, timeout_s=20) as working:
            joint = OverThreads()
            joint._inner = inner
            with pytest.raises(SetupError, match="belongs to another Gatherer already"):
                Gatherer(transport=joint, group=member, timeout_s=20)
            return working.all_gather(member.rank)

    assert ThreadGroup(len(HOSTS)).run(on_rank) == [list(range(len(HOSTS)))] * len(HOSTS)


@pytest.mark.parametrize("outer", ["all_gather_object", "mpi"])
def test_what_needs_all_ranks_cannot_connect_leaders(outer: str) -> None:
    reason = get_transport(f"threads+{outer}").unavailable(contexts_on((0, 1))[0])
    assert reason is not None
    assert outer in reason


def test_no_failure_is_its_own_cause() -> None:
    def body(gatherer: Gatherer) -> Any:
        gatherer.all_gather(0)
        if gatherer.rank == 2:
            raise ZeroDivisionError("by design")
        gatherer.all_gather(1)

    for outcome in outcomes(body):
        seen = []
        while outcome is not None:
            assert outcome not in seen
            seen.append(outcome)
            outcome = outcome.__cause__


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the process of rank 1 has ended", "the process of rank 4 has ended"),
        ("ranks 0-1 did not come", "ranks 2, 4 did not come"),
        ("ranks 0, 2 in 3 s; rank 2 stopped", "ranks 2, 7 in 3 s; rank 7 stopped"),
        ("rank 9 is none of ours", "rank 9 is none of ours"),
        ("ranking 1", "ranking 1"),
    ],
)
def test_texts_name_ranks_of_the_group(text: str, expected: str) -> None:
    assert renumbered(text, [2, 4, 7]) == expected


@pytest.mark.parametrize("reason", ["é" * 300, "\x01" * 300, "\n" * 300, "a: b: c", ""])
@pytest.mark.parametrize(
    "make",
    [
        lambda text: AbortedError(text, 3),
        lambda text: PeerLostError(text, [1, 2]),
        lambda text: TransportTimeoutError(text, [5]),
    ],
    ids=["aborted", "lost", "late"],
)
def test_a_failure_keeps_class_and_ranks_on_its_way_to_another_host(reason: str, make: Any) -> None:
    failure = make(reason)
    block = memoryview(bytearray(LONGEST_FAILURE_NBYTES))
    assert write_failure(block, failure) <= LONGEST_FAILURE_NBYTES
    with pytest.raises(type(failure)) as caught:
        raise_failure(block)
    assert caught.value.args[1:] == failure.args[1:]


def test_after_a_failure_it_is_unusable() -> None:
    def body(transport: Transport) -> Any:
        transport.slot(10)
        if transport.rank == 0:
            return None
        with pytest.raises(TransportError):
            transport.all_gather_slots(10, timeout_s=0.2)
        with pytest.raises(TransportError, match="an earlier exchange failed"):
            transport.all_gather_slots(10, timeout_s=0.2)
        return "twice"

    assert without_notes(body)[1:] == ["twice"] * 5


def test_an_inner_transport_that_cannot_hold_what_all_hosts_send_is_refused() -> None:
    transport = HierarchicalTransport(get_transport("single"), get_transport("single"))
    with pytest.raises(GatherError, match="cannot be the transport inside a host"):
        transport.open(contexts_on([0])[0], 1024, timeout_s=1)


def test_its_spec_and_what_it_can_do_are_those_of_both() -> None:
    transport = get_transport("threads+gloo:chunk_nbytes=4096")
    assert transport.spec == "threads+gloo:chunk_nbytes=4096"
    assert transport.fingerprint() == transport.spec
    assert transport.capabilities.locality == "any"
    assert transport.capabilities.crosses_wire
    assert transport.capabilities.death_detection == "timeout"
