"""Memory for results, from blocks that earlier results have freed: pages that are mapped already cost only the copy.

A block is lent through a uint8 array, the lease, to which nobody but its views refers. Whatever is made of the memory
(arrays, tensors, memoryviews, slices of them) keeps the lease alive through the buffer protocol, so once the lease is
gone the block is nobody's. The garbage collector does not track arrays, so it cannot end a lease while a finalizer may
still look at the memory: a lease ends with the last reference, never before.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from gather_core.memory import aligned_buffer

REUSED_FROM_NBYTES = 128 * 1024
"""Smaller memory is always new: glibc maps new pages for memory from this size on, and reuses the rest by itself.

What it makes of larger memory depends on what else the process has freed: where it reuses that too, lending loses about
2 us per block; where not, it gains 30 us per 128 KiB.
"""

KEPT_NBYTES = 256 << 20
"""What a process keeps track of at most, blocks in use and free ones together: no more than this can lie idle."""

IDLE_S = 10.0
"""How long a free block waits for its next use, in seconds. Who gathers less often would not notice the gain."""

_SIZES_PER_DOUBLING = 8
_WAIT_S = 1.0


def result_buffer(nbytes: int) -> memoryview:
    """As `aligned_buffer`, for what an operation hands out: it may have been the memory of an earlier result.

    Thread-safe. What is kept for that is bounded by `KEPT_NBYTES`, and by `IDLE_S` where results go on being made;
    `drop_free_blocks` frees it at any time.

    Raises:
        MemoryError: There is not that much.
    """
    return aligned_buffer(nbytes) if nbytes < REUSED_FROM_NBYTES else _pool.lend(nbytes)


def drop_free_blocks() -> int:
    """Gives memory back that waits for the next results; what is in use stays. Returns how many bytes it was."""
    return _pool.drop_free()


class BlockPool:
    """Lends blocks, and lends them again when they are no longer used.

    There are eight sizes of blocks per doubling, so that at most an eighth of one is unused. Before a new one is made,
    free ones of as many bytes are dropped: blocks never take more memory than was once in use at the same time.

    Lending never waits. A second thread that comes meanwhile gets new memory that is not tracked, and so does a
    finalizer or signal handler that comes in between.

    Args:
        kept_nbytes: Bound on the blocks that are tracked, in bytes.
        clock: Tells the time in seconds.
    """

    def __init__(self, kept_nbytes: int = KEPT_NBYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept_nbytes = kept_nbytes
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forgets all blocks; those in use become their users'. Also in a forked child, whatever threads were doing."""
        self._lock = threading.Lock()
        self._forget_all()

    def _forget_all(self) -> None:
        self._tracked_nbytes = 0
        # The oldest first.
        self._lent: dict[int, _Lease] = {}
        # By size. What was returned last comes last: the block of its size, and the size.
        self._free: dict[int, deque[_Free]] = {}
        # Grows at any moment and in any thread, by a call that is atomic and runs no Python code.
        self._ended: deque[_Lease] = deque()

    def lend(self, nbytes: int) -> memoryview:
        """Returns writable memory with any content, 64-byte aligned; asked for `REUSED_FROM_NBYTES` and more."""
        if not self._lock.acquire(blocking=False):
            return aligned_buffer(nbytes)
        try:
            return self._lend(_block_nbytes(nbytes))[:nbytes]
        except BaseException:
            self._forget_all()  # a Ctrl-C may have come between two lines that belong together
            raise
        finally:
            self._lock.release()

    def drop_free(self) -> int:
        """Drops the free blocks; returns how many bytes they were."""
        if not self._lock.acquire(timeout=_WAIT_S):
            return 0  # this thread is lending, and a signal handler or finalizer of it has come in between
        try:
            self._take_back(self._clock())
            return self._drop(self._tracked_nbytes)
        finally:
            self._lock.release()

    def _lend(self, block_nbytes: int) -> memoryview:
        now_s = self._clock()
        self._take_back(now_s)
        self._drop_idle(now_s - IDLE_S, block_nbytes)
        block = self._pop_free(block_nbytes)
        if block is None:
            self._drop(block_nbytes)
            block = aligned_buffer(block_nbytes)
            if not self._track(block_nbytes, now_s - IDLE_S):
                return block
        lease, view = _lease_of(block, now_s, self._ended)
        self._lent[id(lease)] = lease
        return view

    def _take_back(self, now_s: float) -> None:
        """Moves the blocks whose lease has ended to the free ones."""
        while self._ended:
            lease = self._ended.popleft()
            if self._lent.pop(id(lease), None) is not None:
                size = len(lease.block)
                same_size = self._free.pop(size, deque())
                same_size.append(_Free(lease.block, now_s))
                self._free[size] = same_size

    def _pop_free(self, size: int) -> memoryview | None:
        """Takes a free block of that size: the one returned last, as it may still be in the processor's cache."""
        same_size = self._free.get(size)
        if not same_size:
            return None
        block = same_size.pop().block
        if not same_size:
            del self._free[size]
        return block

    def _drop_idle(self, before_s: float, block_nbytes: int) -> None:
        """Drops what has been free since before then, of this size and of the one with the oldest return."""
        for size in (block_nbytes, next(iter(self._free), block_nbytes)):
            while size in self._free and self._free[size][0].since_s < before_s:
                self._drop_oldest(size)

    def _drop(self, nbytes: int) -> int:
        """Drops free blocks until they are `nbytes`, or all; returns how many bytes they were."""
        dropped_nbytes = 0
        while dropped_nbytes < nbytes and self._free:
            size = next(iter(self._free))
            self._drop_oldest(size)
            dropped_nbytes += size
        return dropped_nbytes

    def _drop_oldest(self, size: int) -> None:
        same_size = self._free[size]
        same_size.popleft()
        if not same_size:
            del self._free[size]
        self._tracked_nbytes -= size

    def _track(self, nbytes: int, before_s: float) -> bool:
        """Whether there is room to track a new block, where need be in place of ones in use since before then."""
        while self._tracked_nbytes + nbytes > self._kept_nbytes:
            oldest = next(iter(self._lent.values()), None)
            if oldest is None or oldest.since_s >= before_s:
                return False
            del self._lent[id(oldest)]
            self._tracked_nbytes -= len(oldest.block)
        self._tracked_nbytes += nbytes
        return True


class _Free(NamedTuple):
    block: memoryview
    since_s: float


class _Lease(weakref.ref[Any]):
    """Knows of a block whether it is in use."""

    __slots__ = ("block", "since_s")
    block: memoryview
    since_s: float


def _lease_of(block: memoryview, now_s: float, ended: "deque[_Lease]") -> tuple[_Lease, memoryview]:
    """Returns a lease, which adds itself to `ended` when nothing is left of the view, and the view."""
    import numpy as np

    # Of a memoryview: were its base an array, numpy would let arrays made of it refer to that, and not to this one.
    root = np.frombuffer(block, np.uint8)
    lease = _Lease(root, ended.append)
    lease.block = block
    lease.since_s = now_s
    return lease, root.data


def _block_nbytes(nbytes: int) -> int:
    step = (1 << (nbytes.bit_length() - 1)) // _SIZES_PER_DOUBLING
    return -(-nbytes // step) * step


_pool = BlockPool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.reset)
