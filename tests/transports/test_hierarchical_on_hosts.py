"""Ranks on hosts that share nothing but a network: what they gather, what it costs that network, and how it fails."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gather_core import AbortedError, Gatherer, PeerLostError, RemoteEncodeError, TransportError
from host_job import network_hosts, run_on_hosts

pytestmark = pytest.mark.usefixtures("shared_memory")
SPEC = "shm+gloo"


@pytest.fixture
def shared_memory() -> None:
    from gather_transports.shm import ShmTransport

    if reason := ShmTransport.unavailable(None):
        pytest.skip(reason)


def objects_of(rank: int) -> list[Any]:
    return [{"rank": rank}, b"x" * (50_000 + rank), bytes(3_000_000 if rank == 1 else rank), None]


def gather_all_kinds(rank: int, world_size: int, spec: str) -> Any:
    with Gatherer(transport=spec, timeout_s=60) as gatherer:
        columns = [gatherer.all_gather(obj) for obj in objects_of(rank)]
        at_last = gatherer.gather(objects_of(rank), dst=world_size - 1)
        from_1 = gatherer.broadcast(objects_of(rank), src=1)
        hosts = gatherer._connection.context.hosts
        return columns, at_last, from_1 == objects_of(1), gatherer.describe(), hosts, sorted(os.listdir("/dev/shm"))


@pytest.mark.parametrize(
    ("spec", "host_of_rank"), [(SPEC, (0, 1)), (SPEC, (0, 1, 0, 1)), ("auto", (0, 1, 1, 2, 2, 2))], ids=str
)
def test_every_operation_is_exact_and_leaves_nothing(tmp_path: Path, spec: str, host_of_rank: Sequence[int]) -> None:
    world_size = len(host_of_rank)
    with network_hosts(max(host_of_rank) + 1, tmp_path) as hosts:
        found = run_on_hosts(hosts, tmp_path, host_of_rank, gather_all_kinds, spec)
    columns = [list(column) for column in zip(*map(objects_of, range(world_size)), strict=True)]
    for rank, (gathered, at_last, is_from_1, described, hosts_seen, left) in enumerate(found):
        assert gathered == columns
        assert at_last == ([objects_of(peer) for peer in range(world_size)] if rank == world_size - 1 else None)
        assert is_from_1
        assert "shm+gloo" in described
        assert hosts_seen == tuple(host_of_rank)
        assert left == []


def test_what_leaves_a_host_is_about_the_sum_of_its_payloads(tmp_path: Path) -> None:
    nbytes = 8_000_000

    def body(rank: int, world_size: int) -> int:
        with Gatherer(codec="raw", transport=SPEC, timeout_s=60) as gatherer:
            return sum(map(len, gatherer.all_gather(bytes(nbytes))))

    with network_hosts(2, tmp_path) as hosts:
        found = run_on_hosts(hosts, tmp_path, (0, 0, 1), body)
        sent = [hosts.sent_nbytes(host) for host in range(2)]
    assert found == [3 * nbytes] * 3
    assert 2 * nbytes < sent[0] < 1.15 * 2 * nbytes  # times its one peer
    assert nbytes < sent[1] < 1.15 * nbytes


def test_a_failure_to_encode_on_any_rank_reaches_every_host_and_the_group_goes_on(tmp_path: Path) -> None:
    def body(rank: int, world_size: int) -> Any:
        with Gatherer(transport=SPEC, timeout_s=60) as gatherer:
            named = []
            for failing in range(world_size):
                try:
                    gatherer.all_gather((lambda: 1) if rank == failing else 1)
                except RemoteEncodeError as exc:
                    named.append(list(exc.failures))
            return named, gatherer.all_gather(rank)

    with network_hosts(2, tmp_path) as hosts:
        found = run_on_hosts(hosts, tmp_path, (0, 1, 1), body)
    assert found == [([[rank] for rank in range(3)], [0, 1, 2])] * 3


@pytest.mark.parametrize(
    ("victim", "nbytes"),
    [
        pytest.param(1, 30_000_000, id="a follower on the store's host"),
        pytest.param(2, 10, id="a leader"),
        pytest.param(2, 30_000_000, id="a leader, large payloads"),
        pytest.param(3, 10, id="a follower on another host"),
    ],
)
@pytest.mark.fault(45)
def test_a_rank_that_is_killed_is_an_error_on_every_host(tmp_path: Path, victim: int, nbytes: int) -> None:

    def body(rank: int, world_size: int) -> Any:
        with Gatherer(codec="raw", transport=SPEC, timeout_s=20) as gatherer:
            gatherer.all_gather(b"first")
            if rank == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                while True:
                    gatherer.all_gather(bytes(nbytes))
            except TransportError as exc:
                return type(exc).__name__, str(exc)

    with network_hosts(2, tmp_path) as hosts:
        found = run_on_hosts(hosts, tmp_path, (0, 0, 1, 1), body, lost=1)
    for rank, outcome in enumerate(found):
        if rank == victim:
            assert outcome is None
        else:
            assert outcome is not None, f"rank {rank} did not come back"
            assert outcome[0] in {PeerLostError.__name__, AbortedError.__name__}, outcome
