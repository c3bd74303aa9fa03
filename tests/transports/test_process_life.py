"""Whether the process of a peer has ended, as it is seen without waiting for it."""

import os
import select
import subprocess
import sys
from dataclasses import replace

import pytest

from gather_transports.process_life import Birth, ProcessLife, own_birth


@pytest.mark.fault(49)
def test_a_process_that_ends_is_seen_with_a_pidfd_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_birth()
    other_clock = ProcessLife(replace(own, started=own.started - 1))
    assert not other_clock.is_dead(), "start times of two time namespaces cannot be compared"
    other_clock.close()
    assert ProcessLife(Birth((1 << 22) - 1, 5)).is_dead(), "no such process"
    for has_pidfd in (True, False):
        with monkeypatch.context() as patch:
            if not has_pidfd:
                patch.setattr(os, "pidfd_open", lambda pid: (_ for _ in ()).throw(OSError(38, "no")))
                assert not ProcessLife(own).is_dead()
                assert ProcessLife(replace(own, started=own.started - 1)).is_dead(), "a later process of the same pid"
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            with open(f"/proc/{child.pid}/stat", "rb") as file:
                started = int(file.read().rpartition(b")")[2].split()[19])
            life = ProcessLife(Birth(child.pid, started))
            assert not life.is_dead()
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead
            assert life.is_dead()
            child.communicate()
            assert life.is_dead()
            life.close()
            life.close()


def test_two_threads_may_look_at_a_process_at_once_and_a_third_may_close(monkeypatch: pytest.MonkeyPatch) -> None:
    polling: list[object] = []

    class Poll:
        """In the middle of a look, lets others look and close."""

        def register(self, fd: int, events: int) -> None:
            self.fd = fd

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            assert self not in polling, "concurrent poll() invocation"
            polling.append(self)
            if len(polling) == 1:
                assert not life.is_dead()
                life.close()
            os.fstat(self.fd)
            return []

    monkeypatch.setattr(select, "poll", Poll)
    before = len(os.listdir("/proc/self/fd"))
    life = ProcessLife(own_birth())
    assert not life.is_dead()
    assert len(polling) == 2
    assert len(os.listdir("/proc/self/fd")) == before, "it is closed behind the last look"
    assert not life.is_dead(), "nobody asks any more"
