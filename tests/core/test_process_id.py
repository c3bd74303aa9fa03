"""The pid that is kept is always that of the process that asks."""

import mmap
import os

import pytest

from fresh_python import run_python
from gather_core import process_id

_IN_CHILDREN = """
import ctypes, os
told = []
os.register_at_fork(after_in_child=lambda: told.append(this_pid() == os.getpid()))
from gather_core.process_id import this_pid
assert this_pid() == os.getpid()

def check(fork, depth):
    child = fork()
    if child == 0:
        good = this_pid() == os.getpid() == this_pid() and (fork is not os.fork or told[-1])
        if good and depth:
            good = check(os.fork, depth - 1) == check(fork, depth - 1) == 0
        os._exit(not good)
    assert this_pid() == os.getpid()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

print(check(os.fork, 2), check(ctypes.PyDLL(None).fork, 2))
"""


def test_in_children_of_children_however_they_were_forked() -> None:
    assert run_python(_IN_CHILDREN) == "0 0"


def test_a_system_without_such_memory_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_id._quickest() is not os.getpid
    monkeypatch.setattr(process_id, "_MADV_WIPEONFORK", -1)
    assert process_id._quickest() is os.getpid
    monkeypatch.delattr(mmap, "MAP_PRIVATE")
    assert process_id._quickest() is os.getpid
