"""Shared memory within one process: how ranks find each other, what they refuse, and what an exchange leaves."""

import os
import threading
from dataclasses import replace

import pytest

from fresh_python import run_python
from gather_core.errors import SettingsError, TransportError, TransportTimeoutError
from gather_core.registry import get_transport
from gather_core.testing.thread_ranks import local_contexts
from gather_core.transport import PeerState
from gather_transports import semaphores, shared_file, shm_rendezvous
from gather_transports.shm import ShmTransport
from gather_transports.shm_control import ControlBlock, create_control
from shm_ranks import new_file
from shm_thread_ranks import SLOT, on_all


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
    assert run_python(_ON_A_SYSTEM_WITHOUT_ALL_THIS) == "this system has no memfd_create and sem_init"


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
    assert run_python(f"import warnings; warnings.simplefilter('ignore')\n{FORK_INTERRUPTED}") == "1"
