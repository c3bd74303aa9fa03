"""The control block of a group: one small mapping that all ranks share, and that rank 0 has made.

Layout, each item at a multiple of 64 bytes:

| what | per | written by |
|---|---|---|
| farewell: a semaphore, then why the rank has left | rank | that rank, once |
| extents: where a payload beyond the rank's slot is, else 0; u64, see `Extent` and `LEFT` | turn, rank | that rank |
| tokens: a semaphore | writer, reader | the writer gives, the reader takes |
| tokens of loans: a semaphore | writer, area | the readers give, the writer takes |

There is nothing here that counts, so nothing that could wrap: a token is one exchange.
"""

import os
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from gather_core.errors import printable
from gather_core.memory import align
from gather_transports.semaphores import (
    SEMAPHORE_NBYTES,
    Semaphore,
    initialise,
    post,
    semaphore_at,
    try_wait,
)
from gather_transports.shared_mapping import map_file

NUM_AREAS = 12
"""Places for payloads beyond a rank's slot: two for those that peers copy, and ten for loans."""
LEFT = (1 << 64) - 1
"""In place of an extent: the rank has given up in this exchange, in which it may have given its tokens before."""
_LINE_NBYTES = 1024
_KIND_AT = SEMAPHORE_NBYTES
_TEXT_AT = SEMAPHORE_NBYTES + 8


class Leave(IntEnum):
    """How a rank has left the group."""

    ABORTED = 1
    CLOSED = 2


class Extent(NamedTuple):
    """Where a rank has put a payload that is not in its slot."""

    nbytes: int
    area: int
    lent: bool
    """Every rank may keep it, and gives a token back when it has done with it."""

    def pack(self) -> int:
        """As one number, which is 0 only where there are no bytes."""
        return self.nbytes << 8 | self.area << 1 | self.lent

    @staticmethod
    @lru_cache(maxsize=256)  # many payloads are as long as the one before
    def unpack(number: int) -> "Extent":
        """Reads what `pack` has made."""
        return Extent(number >> 8, number >> 1 & 0x7F, bool(number & 1))


def control_nbytes(world_size: int) -> int:
    """The size of a group's control block, in bytes."""
    return _loans_at(world_size) + world_size * NUM_AREAS * SEMAPHORE_NBYTES


def _extents_at(world_size: int, turn: int) -> int:
    return world_size * _LINE_NBYTES + turn * align(8 * world_size)


def _tokens_at(world_size: int) -> int:
    return _extents_at(world_size, 2)


def _loans_at(world_size: int) -> int:
    return _tokens_at(world_size) + world_size * world_size * SEMAPHORE_NBYTES


def create_control(fd: int, world_size: int) -> None:
    """Allocates and initialises a control block in an empty file, before others may attach.

    Raises:
        OSError: No memory, or no semaphores.
    """
    nbytes = control_nbytes(world_size)
    os.posix_fallocate(fd, 0, nbytes)
    memory = map_file(fd, nbytes, writable=True)
    farewells = range(0, world_size * _LINE_NBYTES, _LINE_NBYTES)
    tokens = range(_tokens_at(world_size), nbytes, SEMAPHORE_NBYTES)
    for offset in (*farewells, *tokens):
        initialise(semaphore_at(memory, offset))


class ControlBlock:
    """One rank's view of the control block."""

    def __init__(self, fd: int, rank: int, world_size: int) -> None:
        """Maps it; the descriptor is not needed afterwards."""
        self.memory = map_file(fd, control_nbytes(world_size), writable=True)
        self._world_size = world_size
        self._rank = rank
        self._farewells: dict[int, tuple[Leave, str]] = {}
        self.extents = tuple(
            self.memory[start : start + 8 * world_size].cast("Q")
            for start in (_extents_at(world_size, 0), _extents_at(world_size, 1))
        )
        """For even and odd exchanges, one number per rank."""

    def loan_token(self, writer: int, area: int) -> Semaphore:
        """What each reader gives a writer back that has lent an area."""
        index = writer * NUM_AREAS + area
        return semaphore_at(self.memory, _loans_at(self._world_size) + index * SEMAPHORE_NBYTES)

    def token(self, writer: int, reader: int) -> Semaphore:
        """What a writer gives a reader once per exchange."""
        index = writer * self._world_size + reader
        return semaphore_at(self.memory, _tokens_at(self._world_size) + index * SEMAPHORE_NBYTES)

    def say_farewell(self, kind: Leave, text: str, *, within: int | None = None) -> None:
        """Says that this rank has left, and why; only the first time counts, as the others may be reading.

        Args:
            kind: How.
            text: Why.
            within: The turn whose exchange it leaves unfinished, if any.
        """
        start = self._rank * _LINE_NBYTES
        if self.memory[start + _KIND_AT]:
            return
        encoded = text.encode("utf-8", "replace")[: _LINE_NBYTES - _TEXT_AT - 1]
        self.memory[start + _TEXT_AT : start + _TEXT_AT + len(encoded)] = encoded
        self.memory[start + _KIND_AT] = kind
        for _ in range(self._world_size):
            post(semaphore_at(self.memory, start))
        if within is not None:
            self.extents[within][self._rank] = LEFT

    def farewell(self, rank: int) -> tuple[Leave, str] | None:
        """Returns how and why a rank has left, or None.

        There is a token for every rank, which synchronises memory: each takes one, once, so that nobody who dies
        meanwhile takes another's.
        """
        if rank not in self._farewells:
            start = rank * _LINE_NBYTES
            if try_wait(semaphore_at(self.memory, start)) != 0:
                return None
            text = bytes(self.memory[start + _TEXT_AT : start + _LINE_NBYTES]).partition(b"\0")[0]
            self._farewells[rank] = (Leave(self.memory[start + _KIND_AT]), printable(text.decode("utf-8", "replace")))
        return self._farewells[rank]
