"""POSIX semaphores that lie in shared memory, so that they have no name: `sem_init` with `pshared`, by ctypes.

Why semaphores: POSIX lists `sem_post`, `sem_trywait` and `sem_timedwait` among the functions that synchronise memory
(Base Definitions, 4.12), so what a thread has stored before it posts is there for whoever has taken that token, on any
processor. Python's own stores order nothing.

A token costs 0.15 us to give and 0.15 us to take, where nobody sleeps. (A futex word in place of it costs the same
system call on every round, 0.6 us, as nobody can know whether somebody sleeps; and what orders the payload before the
word must then be argued for each processor.)
"""

import ctypes
import time
from typing import Any

from gather_transports.c_library import c_library

SEMAPHORE_NBYTES = 64
"""A cache line each: sem_t has 32 bytes or fewer with glibc and musl."""


class Semaphore(ctypes.c_void_p):
    """Where one lies. Valid as long as its mapping."""

    __hash__ = object.__hash__


# The functions that never block hold the GIL. Without argtypes, and with arguments that are c_void_p already, a call
# takes half as long.
_quick = c_library(ctypes.PyDLL)
_slow = c_library(ctypes.CDLL)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def missing_function() -> str | None:
    """Returns the name of a function that this system's C library lacks, or None."""
    for name in ("sem_init", "sem_post", "sem_trywait", "sem_timedwait"):
        if not hasattr(_quick, name):
            return name
    return None


def semaphore_at(memory: Any, offset: int) -> Semaphore:
    """Returns the semaphore at an offset of writable memory; it must have been initialised by somebody."""
    return Semaphore(ctypes.addressof(ctypes.c_char.from_buffer(memory, offset)))


def initialise(semaphore: Semaphore) -> None:
    """Makes a semaphore for several processes, with no token.

    Raises:
        OSError: The system has none that are shared between processes.
    """
    if _quick.sem_init(semaphore, 1, 0) != 0:
        raise OSError("this system's semaphores cannot be shared between processes")


def _function(name: str) -> Any:
    return getattr(_quick, name, None)


post = _function("sem_post")
"""Gives a token, and wakes who sleeps for it."""
try_wait = _function("sem_trywait")
"""Takes a token, if there is one: returns 0 where it has, else something else. Never blocks."""
_clock_wait: Any = getattr(_slow, "sem_clockwait", None)
_timed_wait: Any = getattr(_slow, "sem_timedwait", None)


def wait(semaphore: Semaphore, timeout_s: float) -> bool:
    """Sleeps for a token, at most that long; returns whether it has taken one. A signal ends it early.

    Where there is no `sem_clockwait` (musl, glibc before 2.30), somebody who sets the host's clock back prolongs it.
    """
    clock = time.CLOCK_MONOTONIC if _clock_wait is not None else time.CLOCK_REALTIME
    seconds, fraction = divmod(time.clock_gettime(clock) + timeout_s, 1)
    until = ctypes.byref(_Timespec(int(seconds), int(fraction * 1e9)))
    if _clock_wait is not None:
        return bool(_clock_wait(semaphore, clock, until) == 0)
    return bool(_timed_wait(semaphore, until) == 0)
