"""Shared memory within one process: how ranks find each other, what they refuse, and what an exchange leaves."""

import os
import pkgutil
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gather_core.errors import AbortedError, PeerLostError, SettingsError, TransportError, TransportTimeoutError
from gather_core.local_store import LocalStore
from gather_core.registry import get_transport
from gather_core.testing.thread_ranks import local_contexts
from gather_core.transport import GroupContext, PeerState
from gather_transports import semaphores, shared_file, shm_rendezvous, shm_wait
from gather_transports.process_life import ProcessLife, own_birth
from gather_transports.shm import ShmTransport
from gather_transports.shm_control import ControlBlock, Leave, control_nbytes, create_control
from shm_ranks import new_file

SLOT = 1024


def on_all(contexts: list[GroupContext], body: Callable[[ShmTransport], object]) -> list[Any]:
    """What `body` returns or raises on each rank, with an open transport; ranks are threads."""
    outcomes: list[Any] = [None] * len(contexts)
    all_open = threading.Barrier(len(contexts))

    def run_rank(context: GroupContext) -> None:
        transport = ShmTransport()
        try:
            transport.open(context, SLOT, timeout_s=2)
            all_open.wait(10)
            outcomes[context.rank] = body(transport)
        except Exception as exc:
            outcomes[context.rank] = exc
        finally:
            transport.close()

    threads = [threading.Thread(target=run_rank, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def run_python(code: str) -> str:
    """What a new process prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_options_are_in_the_spec() -> None:
    assert ShmTransport().spec == "shm"
    transport = get_transport("shm:folder='/dev/shm',keep_nbytes=0")
    assert isinstance(transport, ShmTransport)
    assert get_transport(transport.spec).spec == transport.spec
    with pytest.raises(SettingsError, match="keep_nbytes must be at least 0, not -1"):
        ShmTransport(keep_nbytes=-1)


def test_it_says_what_a_system_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ShmTransport.unavailable(None) is None
    with monkeypatch.context() as patch:
        patch.delattr(os, "memfd_create")
        assert ShmTransport.unavailable(None) == "this system has no memfd_create"
    with monkeypatch.context() as patch:
        patch.setattr(semaphores, "_quick", object())
        assert ShmTransport.unavailable(None) == "this system's C library has no sem_init"
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "exists", lambda path: False)
        assert "there is no /proc" in str(ShmTransport.unavailable(None))


_ON_A_SYSTEM_WITHOUT_ALL_THIS = """
import ctypes, os, sys, time
import numpy, torch  # which need them

def no_symbols_of_its_own(self, name, *args, **kwargs):
    raise TypeError("argument 1 must be str, not None")

ctypes.CDLL.__init__ = no_symbols_of_its_own
sys.modules["fcntl"] = None
for name in ("memfd_create", "MFD_CLOEXEC", "pidfd_open", "posix_fallocate", "sched_yield", "register_at_fork"):
    delattr(os, name)
del time.CLOCK_MONOTONIC, time.clock_gettime
from gather_transports.semaphores import missing_function
from gather_transports.shm import ShmTransport
print(ShmTransport.unavailable(None), "and", missing_function())
"""


def test_a_system_that_has_nothing_of_what_it_needs_can_still_ask() -> None:
    assert run_python(_ON_A_SYSTEM_WITHOUT_ALL_THIS) == "this system has no memfd_create and sem_init\n"


def test_ranks_on_other_hosts_are_named() -> None:
    contexts = [replace(context, hosts=(0, 0, 1)) for context in local_contexts(3)]
    assert ShmTransport.unavailable(contexts[0]) == "not on the host of rank 0: rank 2"
    assert all(isinstance(outcome, TransportError) for outcome in on_all(contexts, lambda transport: None))


def test_ranks_that_do_not_come_to_open_are_named() -> None:
    with pytest.raises(TransportTimeoutError, match=r"ranks 1-2 did not come to .* in the 0\.2 s left") as caught:
        ShmTransport().open(local_contexts(3)[0], SLOT, timeout_s=0.2)
    assert caught.value.missing == (1, 2)


@pytest.mark.parametrize(
    ("field", "message"),
    [("uid", "another user than that of rank"), ("pid_namespace", "in another PID namespace than rank")],
)
def test_ranks_that_cannot_share_memory_are_named(monkeypatch: pytest.MonkeyPatch, field: str, message: str) -> None:
    own_note = shm_rendezvous.own_note

    def note(region: shared_file.FileAddress, control: shared_file.FileAddress | None) -> shm_rendezvous.Note:
        made = own_note(region, control)
        vars(made)[field] += control is not None
        return made

    monkeypatch.setattr("gather_transports.shm_group.own_note", note)
    outcomes = on_all(local_contexts(3), lambda transport: None)
    assert str(outcomes[0]).endswith(": ranks 1-2")
    assert str(outcomes[1]).endswith(": rank 0")
    assert all(isinstance(outcome, TransportError) and message in str(outcome) for outcome in outcomes)


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


def exchange(transport: ShmTransport, timeout_s: float = 20) -> list[int]:
    """One exchange in which each rank sends its number; the numbers that came."""
    transport.slot(1)[0] = transport.rank
    return [slot[0] for slot in transport.all_gather_slots(1, timeout_s=timeout_s)]


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


def test_tokens_are_of_one_writer_and_one_reader() -> None:
    with new_file() as fd:
        create_control(fd, 3)
        ranks = [ControlBlock(fd, rank, 3) for rank in range(3)]
    semaphores.post(ranks[0].token(0, 2))
    others = [(w, r) for w in range(3) for r in range(3) if (w, r) != (0, 2)]
    assert all(semaphores.try_wait(ranks[1].token(*pair)) for pair in others)
    assert semaphores.wait(ranks[2].token(0, 2), 5)
    assert not semaphores.wait(ranks[2].token(0, 2), 0.01), "it is taken"


@pytest.mark.parametrize("has_clock_wait", [True, False])
def test_a_sleep_ends_in_time_and_with_a_token(monkeypatch: pytest.MonkeyPatch, has_clock_wait: bool) -> None:
    if not has_clock_wait:
        monkeypatch.setattr(semaphores, "_clock_wait", None)
    with new_file() as fd:
        create_control(fd, 1)
        control = ControlBlock(fd, 0, 1)
    token = control.token(0, 0)
    assert not semaphores.wait(token, 0.02)
    giver = threading.Timer(0.02, semaphores.post, (token,))
    giver.start()
    assert semaphores.wait(token, 20)
    giver.join()


def test_views_outlive_the_transport() -> None:
    def body(transport: ShmTransport) -> list[memoryview]:
        transport.slot(5000)[:5000] = bytes([transport.rank]) * 5000
        views = list(transport.all_gather_slots(5000, timeout_s=5))
        transport.close()
        return views

    for views in on_all(local_contexts(2), body):
        assert [bytes(view) for view in views] == [bytes([rank]) * 5000 for rank in range(2)]


def test_thousands_of_exchanges_of_all_sizes_leave_nothing() -> None:
    def body(transport: ShmTransport) -> int:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1500):
            nbytes = 100 if number % 5 else 2000 + 1777 * (number % 37)
            transport.slot(nbytes)[:1] = bytes([number % 251])
            views = transport.all_gather_slots(nbytes, timeout_s=10)
            assert [view[0] for view in views] == [number % 251] * 2
        return len(os.listdir("/proc/self/fd")) - before

    for grown in on_all(local_contexts(2), body):
        assert grown <= 16, "one mapping per area and side, of two ranks"


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


def test_the_layout_of_semaphores_is_compared() -> None:
    assert ShmTransport().fingerprint().startswith("shm, layout 4, ")
    assert ShmTransport().fingerprint().endswith(" bits")


def test_states_of_peers_and_of_a_closed_transport() -> None:
    assert on_all(local_contexts(2), lambda transport: transport.peers()) == [[PeerState.ALIVE] * 2] * 2
    transport = ShmTransport()
    assert transport.peers() == []
    with pytest.raises(TransportError, match="not open"):
        transport.slot(1)
    transport.close()
    with pytest.raises(TransportError, match="closed"):
        transport.all_gather_slots(1, timeout_s=1)


def test_what_a_peer_claims_and_has_not_is_an_error() -> None:
    both_have_read = threading.Barrier(2)

    def body(transport: ShmTransport) -> object:
        transport.slot(5000)
        transport._is_large = transport.rank == 1
        try:
            return transport.all_gather_slots(1 << 50, timeout_s=5)
        finally:
            both_have_read.wait(10)  # else who fails, and closes, is heard of

    outcomes = on_all(local_contexts(2), body)
    assert isinstance(outcomes[0], TransportError)
    assert f"the {1 << 50} bytes of rank 1 cannot be mapped here" in str(outcomes[0])
    assert [len(view) for view in outcomes[1]] == [SLOT, 8192], "it has no more there"


FORK_INTERRUPTED = """
import ctypes, os, signal
from functools import partial
import numpy as np
import torch.distributed as dist
from gather_core import Gatherer

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
gatherer = Gatherer(transport="shm")
(lent,) = gatherer.all_gather(np.full(2 << 20, 1, np.uint8))
# A hook in C, which no handler of Python's can come in the middle of: it comes as the hook behind it begins.
os.register_at_fork(before=partial(ctypes.PyDLL(None)["raise"], signal.SIGINT))
is_written, write = os.pipe()
if not (child := os.fork()):
    os.read(is_written, 1)
    os._exit(int(lent.max()))
del lent
for number in range(2, 6):
    gatherer.all_gather(np.full(2 << 20, number, np.uint8))
os.write(write, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_has_results_of_its_own_though_a_signal_came_as_the_fork_began() -> None:
    assert run_python(f"import warnings; warnings.simplefilter('ignore')\n{FORK_INTERRUPTED}") == "1\n"
