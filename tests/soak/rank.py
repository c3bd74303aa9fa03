"""What a rank does in an episode, and what it says of it. Runs in the ranks' processes."""

import ctypes
import gc
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import variables
from faults.traces import Traces
from gather_core import Gatherer, SetupError, TransportError, drop_free_blocks
from gather_core.host_identity import HOST_ID
from rank_worker import reached
from soak.operations import Operation, is_same, operations
from soak.script import Episode

GO = "go"
_LONGER_THAN_THE_TIMEOUT_S = 35.0
"""By how much what was given up may outlast the timeout: a send of Gloo's may not hear that its connection is lost,
and a rank that dies while others connect to it may be waited for."""
_NUM_KEPT = 6
"""Results that are looked at again before they are dropped, whatever has been gathered since."""
_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


class WrongResultError(Exception):
    """An operation returned something else than it must."""


@dataclass(frozen=True)
class Ended:
    """How an episode ended on one rank."""

    pid: int
    num_operations: int
    error: str
    left: Traces
    resident_nbytes: int


def live(rank: int, world_size: int, planned: Episode) -> Ended:
    """(all ranks) Lives through an episode; raises what must never happen."""
    host = f"host {rank // 2}" if planned.transport == "shm+gloo" else "one host"
    with variables(**{HOST_ID: host}):  # for the episode only: the process goes on to others
        with Gatherer(transport=planned.transport) as first:
            first.barrier()  # what lasts as long as the process is there from now on
        before = Traces.now()
        reached(GO)
        num_operations, error = _gather(rank, world_size, planned)
    left = before.left(planned.timeout_s + _LONGER_THAN_THE_TIMEOUT_S)
    return Ended(os.getpid(), num_operations, error, left, _resident_nbytes())


def _gather(rank: int, world_size: int, planned: Episode) -> tuple[int, str]:
    num_operations = 0
    try:
        with Gatherer(
            codec=planned.codec,
            transport=planned.transport,
            slot_nbytes=planned.slot_nbytes,
            key=planned.key,
            timeout_s=planned.timeout_s,
        ) as gatherer:
            kept: deque[tuple[Operation, Any]] = deque(maxlen=_NUM_KEPT)
            for operation in operations(planned, world_size):
                found = operation.call(gatherer)
                if not is_same(found, operation.expected(rank)):
                    raise WrongResultError(f"{operation.name}, number {num_operations} of {planned}")
                num_operations += 1
                kept.append((operation, found))
                earlier, found = kept[0]
                if not is_same(found, earlier.expected(rank)):
                    raise WrongResultError(f"{earlier.name} changed by number {num_operations} of {planned}")
    except (TransportError, SetupError) as exc:
        if planned.must_succeed:
            raise
        return num_operations, f"{type(exc).__name__}: {exc}"
    return num_operations, ""


def _resident_nbytes() -> int:
    """Of this process, once it has given back what it does not need."""
    gc.collect()
    drop_free_blocks()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_NBYTES
