"""The control block of a group: one small mapping that all ranks share, and that rank 0 has made.

Layout, each item at a multiple of 64 bytes:

| what | per | written by |
|---|---|---|
| farewell: a semaphore, then why the rank has left | rank | that rank, once |
| extents: bytes of a payload that is not in the rank's slot but in its area, else 0; u64 | turn, rank | that rank |
| tokens: a semaphore | writer, reader | the writer gives, the reader takes |

There is nothing here that counts, so nothing that could wrap: a token is one exchange.
"""

import mmap
import os
from enum import IntEnum

from gather_core.memory import align
from gather_transports.semaphores import (
    SEMAPHORE_NBYTES,
    Semaphore,
    initialise,
    post,
    semaphore_at,
    try_wait,
)

_LINE_NBYTES = 1024
_KIND_AT = SEMAPHORE_NBYTES
_TEXT_AT = SEMAPHORE_NBYTES + 8


class Leave(IntEnum):
    """How a rank has left the group."""

    ABORTED = 1
    CLOSED = 2


def control_nbytes(world_size: int) -> int:
    """The size of a group's control block, in bytes."""
    return _tokens_at(world_size) + world_size * world_size * SEMAPHORE_NBYTES


def _extents_at(world_size: int, turn: int) -> int:
    return world_size * _LINE_NBYTES + turn * align(8 * world_size)


def _tokens_at(world_size: int) -> int:
    return _extents_at(world_size, 2)


def create_control(fd: int, world_size: int) -> None:
    """Allocates and initialises a control block in an empty file, before others may attach.

    Raises:
        OSError: No memory, or no semaphores.
    """
    nbytes = control_nbytes(world_size)
    os.posix_fallocate(fd, 0, nbytes)
    memory = mmap.mmap(fd, nbytes)
    farewells = range(0, world_size * _LINE_NBYTES, _LINE_NBYTES)
    tokens = range(_tokens_at(world_size), nbytes, SEMAPHORE_NBYTES)
    for offset in (*farewells, *tokens):
        initialise(semaphore_at(memory, offset))


class ControlBlock:
    """One rank's view of the control block."""

    def __init__(self, fd: int, rank: int, world_size: int) -> None:
        """Maps it; the descriptor is not needed afterwards."""
        self._memory = mmap.mmap(fd, control_nbytes(world_size))
        self._world_size = world_size
        self._rank = rank
        self.extents = tuple(
            memoryview(self._memory)[start : start + 8 * world_size].cast("Q")
            for start in (_extents_at(world_size, 0), _extents_at(world_size, 1))
        )
        """For even and odd exchanges, one number per rank."""

    def token(self, writer: int, reader: int) -> Semaphore:
        """What a writer gives a reader once per exchange."""
        index = writer * self._world_size + reader
        return semaphore_at(self._memory, _tokens_at(self._world_size) + index * SEMAPHORE_NBYTES)

    def say_farewell(self, kind: Leave, text: str) -> None:
        """Says that this rank has left, and why; only the first time counts, as the others may be reading."""
        start = self._rank * _LINE_NBYTES
        if self._memory[start + _KIND_AT]:
            return
        encoded = text.encode("utf-8", "replace")[: _LINE_NBYTES - _TEXT_AT - 1]
        self._memory[start + _TEXT_AT : start + _TEXT_AT + len(encoded)] = encoded
        self._memory[start + _KIND_AT] = kind
        post(semaphore_at(self._memory, start))

    def farewell(self, rank: int) -> tuple[Leave, str] | None:
        """Returns how and why a rank has left, or None.

        The token is taken, so that memory is synchronised, and given back for the next to ask; who asks at that very
        moment hears of it the next time.
        """
        start = rank * _LINE_NBYTES
        raised = semaphore_at(self._memory, start)
        if try_wait(raised) != 0:
            return None
        post(raised)
        text = self._memory[start + _TEXT_AT : start + _LINE_NBYTES].partition(b"\0")[0]
        return Leave(self._memory[start + _KIND_AT]), text.decode("utf-8", "replace")
