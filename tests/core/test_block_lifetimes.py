"""How long a block is in use: as long as anything is left of what was made of it, in whatever thread or process."""

import ctypes
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack

from fresh_python import run_python
from gather_core.blocks import REUSED_FROM_NBYTES, BlockPool

N = REUSED_FROM_NBYTES


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(8 * N)


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def unpickled(view: memoryview) -> Any:
    head = pickle.dumps(np.ones(len(view) // 8), protocol=5, buffer_callback=lambda _: None)
    return pickle.loads(head, buffers=[view])


class Bare:
    """No array, but says where one is."""

    def __init__(self, view: memoryview) -> None:
        self.array = np.frombuffer(view, np.uint8)
        self.__array_interface__ = self.array.__array_interface__


def cycle(view: memoryview) -> Any:
    """Garbage only once the list returned is; then it takes a collection."""
    inner: list[Any] = [np.frombuffer(view, np.uint8)]
    inner.append(inner)
    return inner


HOLDERS: dict[str, Callable[[memoryview], Any]] = {
    "the view": lambda view: view,
    "a slice of a slice": lambda view: view[100:][:-100][1:2],
    "a cast and read-only view": lambda view: view.cast("d").toreadonly(),
    "an iterator over a view": iter,
    "what the view says it is of": lambda view: view.obj,
    "an array of what the view says it is of": lambda view: np.asarray(view.obj)[5:],
    "an array": lambda view: np.frombuffer(view, np.int64),
    "an array by shape": lambda view: np.ndarray((2, N // 16), np.int64, view, order="F"),
    "a view of a view of an array": lambda view: np.frombuffer(view, np.int64)[3:].reshape(-1, 1).T[:, ::2],
    "a field of a structured array": lambda view: np.frombuffer(view, [("a", "i4"), ("b", "f4")])["b"],
    "a broadcast array": lambda view: np.broadcast_to(np.frombuffer(view, np.uint8)[:1], (9,)),
    "a strided array": lambda view: np.lib.stride_tricks.as_strided(np.frombuffer(view, np.uint8), (3,), (7,)),
    "a matrix": lambda view: np.frombuffer(view, np.int64).view(np.matrix)[0, 1:],
    "a flat iterator": lambda view: np.frombuffer(view, np.int64).flat,
    "an array made by its interface": lambda view: np.asarray(Bare(view))[9:],
    "an unpickled array": unpickled,
    "a PickleBuffer": lambda view: pickle.PickleBuffer(np.frombuffer(view, np.uint8)[1:].data),
    "the raw view of a PickleBuffer": lambda view: pickle.PickleBuffer(view).raw()[2:],
    "a ctypes array": lambda view: (ctypes.c_char * 10).from_buffer(view, 5),
    "a memoryview of a ctypes array": lambda view: memoryview((ctypes.c_char * 10).from_buffer(view))[3:],
    "a tensor of a view": lambda view: torch.frombuffer(view, dtype=torch.float32),
    "a tensor of an array": lambda view: torch.from_numpy(np.frombuffer(view, np.int64)[7:]),
    "a view of a tensor": lambda view: torch.frombuffer(view, dtype=torch.int64).reshape(2, -1).t()[3:],
    "a detached leaf": lambda view: torch.frombuffer(view, dtype=torch.float32).requires_grad_().detach(),
    "a parameter": lambda view: torch.nn.Parameter(torch.frombuffer(view, dtype=torch.float32)[:4]),
    "what autograd saved": lambda view: torch.ones(N, requires_grad=True) * torch.frombuffer(view, dtype=torch.uint8),
    "a tensor of another dtype": lambda view: torch.frombuffer(view, dtype=torch.uint8).view(torch.bfloat16),
    "a storage": lambda view: torch.frombuffer(view, dtype=torch.uint8)[5:].untyped_storage(),
    "a slice of a storage": lambda view: torch.frombuffer(view, dtype=torch.uint8).untyped_storage()[1:2],
    "the array of a tensor": lambda view: torch.frombuffer(view, dtype=torch.int64)[1:].numpy()[1:],
    "an array by DLPack": lambda view: np.from_dlpack(torch.frombuffer(view, dtype=torch.int64)),
    "a tensor by DLPack": lambda view: from_dlpack(np.frombuffer(view, np.int64)[2:]),
    "a capsule of DLPack": lambda view: torch.frombuffer(view, dtype=torch.int64).__dlpack__(),
    "garbage in a cycle, until it is collected": cycle,
}


@pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)
def test_a_block_is_lent_again_only_when_nothing_is_left_of_what_was_made_of_it(
    pool: BlockPool, make: Callable[[memoryview], Any]
) -> None:
    view = pool.lend(N)
    lent = address(view)
    holder = make(view)
    del view
    others = [pool.lend(N) for _ in range(3)]
    assert lent not in map(address, others)
    del holder
    if make is cycle:
        gc.collect()
    assert address(pool.lend(N)) == lent


def test_a_finalizer_in_a_cycle_still_sees_its_memory(pool: BlockPool) -> None:
    seen = []

    class Node:
        def __init__(self) -> None:
            self.cycle = self
            self.array = np.frombuffer(pool.lend(N), np.uint8)
            self.array[:] = 7

        def __del__(self) -> None:
            pool.lend(N)[:] = bytes(N)
            seen.append(bytes(self.array) == b"\7" * N)

    Node()
    gc.collect()
    assert seen == [True]


def test_a_resurrected_array_keeps_its_memory(pool: BlockPool) -> None:
    saved = []

    class Node:
        def __init__(self) -> None:
            self.cycle = self
            self.array = np.frombuffer(pool.lend(N), np.uint8)

        def __del__(self) -> None:
            saved.append(self.array)

    Node()
    gc.collect()
    assert not np.shares_memory(saved[0], np.frombuffer(pool.lend(N), np.uint8))


def test_threads_never_share_memory(pool: BlockPool) -> None:
    damaged: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            array = np.frombuffer(pool.lend(N), np.uint8)
            array[:] = number
            if not (array == number).all():
                damaged.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert not damaged
    assert pool.drop_free() <= 8 * N


def test_a_block_that_another_thread_dropped_is_lent_again(pool: BlockPool) -> None:
    held = [pool.lend(N)]
    lent = address(held[0])
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert address(pool.lend(N)) == lent


_IN_A_CHILD = """
import os
from gather_core import blocks
from gather_core.blocks import result_buffer

N = 1 << 20
kept = result_buffer(N)
kept[:] = b"7" * N
result_buffer(N)
assert blocks._pool._lock.acquire()  # as a thread does that the child will not have
child = os.fork()
if not child:
    mine = result_buffer(N)
    mine[:] = bytes(N)
    assert kept == b"7" * N
    del kept, mine
    assert blocks.drop_free_blocks() == N
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
blocks._pool._lock.release()
assert kept == b"7" * N
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is what is tested")
def test_a_forked_child_starts_anew_and_keeps_what_was_in_use() -> None:
    run_python(_IN_A_CHILD)


_AT_EXIT = """
import sys, threading
import numpy as np, torch
from gather_core.blocks import result_buffer

class Late:
    def __del__(self):
        self.array[:] = 1

late = Late()
late.array = np.frombuffer(result_buffer(1 << 20), np.uint8)
late.cycle = late
tensor = torch.frombuffer(result_buffer(1 << 20), dtype=torch.uint8)
sys.modules["kept until the end"] = [np.frombuffer(result_buffer(1 << 20), np.uint8), Late]
threading.Thread(target=lambda: result_buffer(1 << 20)).start()
"""


def test_nothing_is_said_when_the_interpreter_ends_with_results_alive() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _AT_EXIT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
