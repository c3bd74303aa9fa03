"""Leaving shared memory: closing, aborting and ending, beside exchanges and other threads; ranks are threads."""

import os
import pkgutil
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gather_core.errors import AbortedError, PeerLostError, TransportError, TransportTimeoutError
from gather_core.local_store import LocalStore
from gather_core.testing.thread_ranks import local_contexts
from gather_transports import semaphores, shared_file, shm_rendezvous, shm_wait
from gather_transports.process_life import ProcessLife, own_birth
from gather_transports.shm import ShmTransport
from gather_transports.shm_control import ControlBlock, Leave, control_nbytes, create_control
from shm_ranks import new_file
from shm_thread_ranks import SLOT, exchange, on_all


def test_a_farewell_is_heard_by_all_and_the_first_counts() -> None:
    with new_file() as fd:
        create_control(fd, 3)
        assert os.fstat(fd).st_size == control_nbytes(3)
        ranks = [ControlBlock(fd, rank, 3) for rank in range(3)]
    assert [ranks[0].farewell(rank) for rank in range(3)] == [None] * 3
    ranks[1].say_farewell(Leave.ABORTED, "\u00fc" * 2000)
    ranks[1].say_farewell(Leave.CLOSED, "again")
    for _ in range(2):
        for reader in (ranks[0], ranks[2]):
            kind, text = reader.farewell(1) or (None, "")
            assert kind is Leave.ABORTED
            assert text.startswith("\u00fc" * 400)
    assert ranks[1].farewell(0) is None


def test_a_farewell_is_not_lost_with_a_rank_that_dies_while_it_reads_it() -> None:
    with new_file() as fd:
        create_control(fd, 3)
        ranks = [ControlBlock(fd, rank, 3) for rank in range(3)]
    ranks[1].say_farewell(Leave.ABORTED, "out of paper")
    taken = semaphores.try_wait(semaphores.semaphore_at(ranks[2].memory, 1024))
    assert taken == 0, "rank 2 has taken the token, and dies here"
    assert ranks[0].farewell(1) == (Leave.ABORTED, "out of paper")


def test_who_comes_after_the_others_have_given_up_hears_of_it_though_their_tokens_have_come() -> None:
    others_left = threading.Barrier(3)

    def body(transport: ShmTransport) -> object:
        assert exchange(transport) == [0, 1, 2]
        if transport.rank == 1:
            others_left.wait(20)
            return exchange(transport)
        try:
            return exchange(transport, 0.1)
        except TransportError:
            transport.abort("out of time")
            raise
        finally:
            others_left.wait(20)

    outcomes = on_all(local_contexts(3), body)
    # Of the two that wait for rank 1, one may hear that the other has given up.
    assert all(isinstance(outcome, TransportTimeoutError | AbortedError) for outcome in outcomes)
    assert re.fullmatch(r"rank [02] aborted: out of time", str(outcomes[1]))


@pytest.mark.parametrize("leave", [ShmTransport.close, lambda transport: transport.abort("no more")])
def test_who_leaves_behind_an_exchange_does_not_end_it_for_those_who_still_read(
    leave: Callable[[ShmTransport], object],
) -> None:
    other_left = threading.Event()

    class ComeLate(list[Any]):
        """Tokens that nobody looks at before the other rank has left."""

        def __iter__(self) -> Any:
            other_left.wait(20)
            return super().__iter__()

    def body(transport: ShmTransport) -> object:
        assert exchange(transport) == [0, 1]
        if transport.rank == 1:
            assert transport._group is not None
            waiting = transport._group.wait
            waiting.tokens = ComeLate(waiting.tokens)
            return exchange(transport)
        came = exchange(transport)
        leave(transport)
        other_left.set()
        return came

    assert on_all(local_contexts(2), body) == [[0, 1]] * 2


class Ended(ProcessLife):
    """A process that has ended."""

    def is_dead(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Leave.ABORTED, "rank 1 aborted: out of paper"),
        (Leave.CLOSED, "rank 1 closed the transport before this exchange"),
        (None, "the process of rank 1 has ended"),
    ],
)
def test_a_rank_that_has_said_why_it_leaves_before_it_ended_is_quoted(kind: Leave | None, text: str) -> None:
    with new_file() as fd:
        create_control(fd, 2)
        ranks = [ControlBlock(fd, rank, 2) for rank in range(2)]
    if kind is not None:
        ranks[1].say_farewell(kind, "out of paper")
    life = Ended(own_birth())
    waiting = shm_wait.PeerWait(ranks[0], 0, {1: life})
    with pytest.raises(AbortedError if kind is Leave.ABORTED else PeerLostError) as caught:
        waiting.wait_from(waiting.tokens[0], 20, lambda: None)
    life.close()
    assert str(caught.value) == text


def test_only_ranks_that_have_not_come_are_named_however_slow_the_store_is() -> None:
    answer = threading.Event()

    class SlowStore(LocalStore):
        """Does not answer the second time that it is asked for rank 1."""

        num_asked = 0

        def check(self, keys: list[str], /) -> bool:
            self.num_asked += keys == ["note/1"]
            if self.num_asked > 1:
                answer.wait(30)
            return super().check(keys)

    (context,) = local_contexts(1)
    context = replace(context, world_size=4, store=SlowStore())
    note = shm_rendezvous.own_note(shared_file.FileAddress(1, 2, 3, 4), None)
    for rank in (2, 3):
        context.store.set(f"note/{rank}", note.to_json())
    with pytest.raises(TransportTimeoutError, match=r"^rank 1 did not come") as caught:
        shm_rendezvous.exchange_notes(context, note, 0.3, lambda: None)
    answer.set()
    assert caught.value.missing == (1,)


def test_an_abort_ends_this_ranks_own_wait_at_once() -> None:
    def body(transport: ShmTransport) -> str:
        if transport.rank == 1:
            threading.Event().wait(0.5)
            return ""
        threading.Timer(0.1, transport.abort, ("out of paper",)).start()
        started = time.monotonic()
        with pytest.raises(AbortedError) as caught:
            transport.all_gather_slots(0, timeout_s=60)
        assert time.monotonic() - started < 20
        return str(caught.value)

    assert on_all(local_contexts(2), body)[0] == "out of paper"


def test_a_close_by_another_thread_ends_a_wait_at_once() -> None:
    def body(transport: ShmTransport) -> str:
        if transport.rank == 1:
            threading.Event().wait(0.5)
            return ""
        threading.Timer(0.1, transport.close).start()
        with pytest.raises(AbortedError) as caught:
            transport.all_gather_slots(0, timeout_s=60)
        with pytest.raises(TransportError, match="the transport is closed"):
            transport.slot(1)
        return str(caught.value)

    assert on_all(local_contexts(2), body)[0] == "the transport is closed"


@pytest.mark.parametrize("moment", ["os.posix_fallocate", "gather_transports.shm_region.map_file"])
def test_a_close_beside_a_growing_slot_harms_no_file_that_is_opened_since(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    transport = ShmTransport()
    transport.open(local_contexts(1)[0], SLOT, timeout_s=5)
    others: list[int] = []

    def close_and_go_on(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        closing = threading.Thread(target=transport.close)
        closing.start()
        closing.join()
        others.extend(os.open(tmp_path / str(number), os.O_CREAT | os.O_RDWR) for number in range(4))
        return function(*args, **options)

    module, _, name = moment.rpartition(".")
    monkeypatch.setattr(moment, partial(close_and_go_on, getattr(pkgutil.resolve_name(module), name)))
    with suppress(TransportError):
        transport.slot(5000)[:5000] = b"x" * 5000
    assert [os.fstat(fd).st_size for fd in others] == [0] * 4
    for fd in others:
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_abort_beside_a_close_raises_nothing() -> None:
    class ClosedMeanwhile(ShmTransport):
        """Closed by another thread right behind each look at its group."""

        groups: list[Any] = []  # noqa: RUF012

        @property
        def _group(self) -> Any:
            return self.groups.pop() if self.groups else None

        @_group.setter
        def _group(self, group: Any) -> None:
            self.groups[:] = [group]

    transport = ClosedMeanwhile()
    transport.open(local_contexts(1)[0], SLOT, timeout_s=5)
    (group,) = transport.groups
    transport.abort("out of paper")
    assert group.control.farewell(0) == (Leave.ABORTED, "out of paper")
    group.close()
