"""Waiting for MPI's requests: with a deadline, open to interrupts, quick for what comes at once, and asleep otherwise.

MPI's own waits have no deadline and keep a core busy. Where more ranks than cores share a host, what one of them burns
is what the others lack.
"""

import os
import time
from collections.abc import Callable, Sequence
from time import perf_counter, sleep
from typing import TYPE_CHECKING, NoReturn

from gather_core.deadline import Deadline
from gather_core.errors import PeerLostError, TransportTimeoutError, summarize

if TYPE_CHECKING:
    from mpi4py import MPI

_NUM_SPINS = 300
"""Tests in a row, some 50 us, before other processes get a turn. On 2 cores that others used too, a dict from 2 ranks
took 140 us with 100 of them, and 34 with 300 or 1,000."""
_BUSY_S = 100e-6
"""How long at least a wait only gives way to other processes, before it sleeps."""
_BUSY_S_PER_BYTE = 2e-9
"""And how much longer for each byte under way: MPI moves them only while it is called."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 20e-6, 5e-3
_LONGEST_PAUSE_WITH_BYTES_S = 0.5e-3
_PAUSE_SHARE = 1 / 16
"""A pause is this share of the time waited so far: what a late message loses is no more than that."""
_LOOK_EVERY_S = 0.05

_abandoned: list[object] = []
"""Requests that were given up, and the memory that they may still read and write: for as long as the process lives."""
_give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))


def are_soon_complete(requests: "Sequence[MPI.Request]") -> bool:
    """Tests requests for some microseconds, without anything else; returns whether they are done."""
    if not requests:
        return True
    test = _test_of(requests)
    for _ in range(_NUM_SPINS):  # noqa: SIM110 - a generator takes longer than the first test
        if test():
            return True
    return False


def wait(
    requests: "Sequence[MPI.Request]",
    deadline: Deadline,
    looks: Sequence[Callable[[], None]] = (),
    *,
    nbytes: int = 0,
) -> None:
    """Waits until all requests are done, giving way to others; `give_up` is the caller's, whatever this raises.

    Args:
        requests: As MPI gave them.
        deadline: When this rank gives up.
        looks: Called at least every 0.25 s; what they raise passes, and ends the wait.
        nbytes: How much is under way in all.

    Raises:
        TransportTimeoutError: The deadline passed.
        MPI.Exception: MPI reports an error.
    """
    if not requests:
        return
    test = _test_of(requests)
    busy_s = _BUSY_S + nbytes * _BUSY_S_PER_BYTE
    longest_pause_s = _LONGEST_PAUSE_WITH_BYTES_S if nbytes else _LONGEST_PAUSE_S
    started = perf_counter()
    next_look_s = _LOOK_EVERY_S
    while not test():
        waited_s = perf_counter() - started
        if waited_s < busy_s:
            _give_way()
        else:
            sleep(min(max(waited_s * _PAUSE_SHARE, _SHORTEST_PAUSE_S), longest_pause_s))
        if waited_s >= next_look_s:
            next_look_s = waited_s + _LOOK_EVERY_S
            for look in looks:
                look()
        if deadline.passed():
            raise TransportTimeoutError(f"not all ranks came within {deadline.timeout_s:.3g} s")


def give_up(kept: object, exc: BaseException) -> NoReturn:
    """Keeps, for ever, requests and the memory that MPI may still read and write: it cannot take a collective back.

    Raises:
        PeerLostError: In place of an error of MPI's.
        BaseException: `exc`, if it is another.
    """
    from mpi4py import MPI

    _abandoned.append(kept)
    if isinstance(exc, MPI.Exception):
        raise PeerLostError(f"MPI failed: {summarize(exc)}") from exc
    raise exc


def _test_of(requests: "Sequence[MPI.Request]") -> Callable[[], bool]:
    if len(requests) == 1:
        return requests[0].Test
    return lambda: type(requests[0]).Testall(requests)


def keep_for_ever(thing: object) -> None:
    """Keeps what MPI may use until it has ended."""
    _abandoned.append(thing)
