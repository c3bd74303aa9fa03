"""Failures after the ranks have agreed, while their transports connect; and constructions that some rank skips."""

import os
import signal
import threading
import time
from typing import Any

import pytest

from gather_core import Gatherer, SetupError, TransportError
from gather_core.process_group import store_of
from rank_pool import RankPool, reached


def instead_of_connecting(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    from gather_transports import gloo_link

    monkeypatch.setattr(gloo_link, "GlooLink", act)
    monkeypatch.setattr("gather_transports.gloo.GlooLink", act)


def construct(rank: int, victim: int, act: Any, timeout_s: float) -> tuple[str, dict[int, str], list[str]]:
    """Constructs a Gatherer, in which the victim acts instead of connecting; returns what came of it."""
    before = set(threading.enumerate())  # Gloo itself waits a while longer for a rank that died in an earlier test
    with pytest.MonkeyPatch.context() as patch:
        if rank == victim:
            instead_of_connecting(patch, act)
        with pytest.raises(SetupError) as caught:
            Gatherer(transport="gloo", timeout_s=timeout_s)
    left = [thread.name for thread in set(threading.enumerate()) - before if "gloo-connect" in thread.name]
    return str(caught.value), caught.value.failures, left


def test_a_rank_killed_before_it_connects_is_named_at_the_deadline(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        return construct(rank, 1, lambda *args: os.kill(os.getpid(), signal.SIGKILL), timeout_s=2)

    outcomes = pool.run(3, body, expect_death=[1])
    for outcome in (outcomes[0], outcomes[2]):
        text, failures, left = outcome.value
        assert list(failures) == [1], text
        assert "never came" in text
        assert left == []
        assert outcome.seconds < 5


@pytest.mark.parametrize(("victim", "timeout_s"), [(0, 2), (1, 7), (3, 2)])
def test_a_rank_that_dies_once_it_has_said_where_it_is_is_the_one_that_is_named(
    pool: RankPool, victim: int, timeout_s: float
) -> None:
    def body(rank: int, world_size: int) -> Any:
        from gather_transports.gloo_rendezvous import RendezvousStore

        publish = RendezvousStore.set

        def publish_and_die(self: RendezvousStore, key: str, value: Any) -> None:
            publish(self, key, value)
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            if rank == victim:
                patch.setattr(RendezvousStore, "set", publish_and_die)
            with pytest.raises(SetupError) as caught:
                Gatherer(transport="gloo", timeout_s=timeout_s)
        return str(caught.value), list(caught.value.failures)

    outcomes = pool.run(4, body, expect_death=[victim])
    for outcome in (outcomes[rank] for rank in range(4) if rank != victim):
        text, failed = outcome.value
        assert failed == [victim], text
        assert outcome.seconds < timeout_s + 2


def test_ranks_that_come_at_different_times_still_name_the_one_that_dies_while_it_connects(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        from gather_transports.gloo_rendezvous import RendezvousStore

        look_up, num_looked_up = RendezvousStore.get, 0

        def die_after_two(self: RendezvousStore, key: str) -> bytes:
            nonlocal num_looked_up
            num_looked_up += 1
            if num_looked_up > 2:
                time.sleep(0.05)  # in which others connect to it
                os.kill(os.getpid(), signal.SIGKILL)
            return look_up(self, key)

        time.sleep(1.5 if rank else 0)
        with pytest.MonkeyPatch.context() as patch:
            if rank == 3:
                patch.setattr(RendezvousStore, "get", die_after_two)
            with pytest.raises(SetupError) as caught:
                Gatherer(transport="gloo", timeout_s=3)
        return str(caught.value), list(caught.value.failures)

    for outcome in pool.run(4, body, expect_death=[3])[:3]:
        text, failed = outcome.value
        assert failed == [3], text


def test_who_has_given_up_writes_nothing_more_into_the_jobs_store() -> None:
    from gather_core.deadline import Deadline
    from gather_core.local_store import LocalStore
    from gather_transports.gloo_rendezvous import RendezvousStore

    store = LocalStore()
    rendezvous = RendezvousStore(store, Deadline(60))
    rendezvous.set("before", "")
    rendezvous.give_up()
    for late in (lambda: rendezvous.set("after", ""), lambda: rendezvous.get("never"), rendezvous.check_wanted):
        with pytest.raises(RuntimeError, match=r"given up|gave up"):
            late()
    assert store.check(["before"])
    assert not store.check(["after"])


def test_a_rank_that_cannot_connect_fails_the_others_at_once(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        def fail(*args: Any) -> None:
            time.sleep(0.3)
            raise TransportError("no such interface")

        return construct(rank, 1, fail, timeout_s=30)

    for outcome in pool.run(3, body):
        text, failures, left = outcome.value
        assert text == "rank 1 could not set up: TransportError: no such interface"
        assert list(failures) == [1]
        assert left == []
        assert outcome.seconds < 5


def test_ctrl_c_while_connecting_ends_it_and_fails_the_others_at_once(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        def never(*args: Any) -> None:
            reached("waits")
            time.sleep(3)
            raise TransportError("came too late")

        return construct(rank, 1, never, timeout_s=30)

    running = pool.start(3, body)
    running.wait_for(1, "waits")
    os.kill(running.pid(0), signal.SIGINT)
    outcomes = running.wait()
    assert isinstance(outcomes[0].error, KeyboardInterrupt)
    assert outcomes[0].seconds < 2
    text, failures, _ = outcomes[2].value
    assert list(failures) == [0], text
    assert "KeyboardInterrupt" in text
    assert outcomes[2].seconds < 2.5


def test_after_a_construction_that_one_rank_skipped_or_failed_the_next_one_succeeds(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[int]:
        import torch.distributed as dist

        if rank == 0:
            with pytest.raises(SetupError, match="rank 1 could not set up: never came"):
                Gatherer(transport="gloo", timeout_s=1)
        dist.barrier()
        if rank == 0:
            with pytest.raises(SetupError, match="rank 1 could not set up: TypeError: group must be"):
                Gatherer(transport="gloo", timeout_s=20)
        else:
            with pytest.raises(TypeError):
                Gatherer(transport="gloo", timeout_s=20, group="no group")
        with Gatherer(transport="gloo", timeout_s=20) as gatherer:
            return gatherer.all_gather(rank)

    assert pool.values(2, body) == [[0, 1], [0, 1]]


def test_a_transport_object_of_another_gatherer_is_refused_and_goes_on_serving_that(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[int]:
        from gather_transports.gloo import GlooTransport

        transport = GlooTransport()
        with Gatherer(transport=transport, timeout_s=20) as gatherer:
            with pytest.raises(SetupError, match="belongs to another Gatherer"):
                Gatherer(transport=transport, timeout_s=20)
            return gatherer.all_gather(rank)

    assert pool.values(2, body) == [[0, 1], [0, 1]]


def test_gatherers_leave_no_keys_in_the_store(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        import torch.distributed as dist

        store: Any = store_of(dist.group.WORLD)
        Gatherer(transport="gloo", timeout_s=20).close()
        dist.barrier()
        before: int = store.num_keys()
        dist.barrier()
        for _ in range(10):
            Gatherer(transport="gloo", timeout_s=20).close()
        dist.barrier()
        return int(store.num_keys() - before)

    assert max(pool.values(3, body)) <= 3
