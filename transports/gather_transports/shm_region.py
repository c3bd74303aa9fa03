"""One rank's memory: two slots, and behind each an area for larger payloads. Its rank writes it, all others read it.

The file has holes: each area begins at a distance from the slots that no payload bridges, so that it can grow where it
is. What is used of it is allocated first, so that a full file system is an error here and not a SIGBUS; what is no
longer used is given back by punching a hole. The file is never truncated, nor a mapping resized: a growing area gets a
second, longer mapping, and the first ends with its last view.
"""

import errno
import mmap
import os

from gather_core.available_memory import available_nbytes
from gather_core.memory import align

_AREA_AT = 1 << 42
"""Largest payload, in bytes; the file is shorter than 16 TiB, which is as long as ext4 allows."""
_STEPS_PER_DOUBLING = 8
_LOOK_FROM_NBYTES = 1 << 20
"""Looking for what is available takes about as long as allocating this much."""
_SHRINK_AFTER = 8
"""Small payloads in a row, per slot: a job that alternates between sizes should not allocate anew each time."""


def _slots_nbytes(slot_nbytes: int) -> int:
    return _whole_pages(2 * slot_nbytes)


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _area_nbytes(nbytes: int) -> int:
    """How long an area is to be for a payload: up to an eighth longer, so that it need not grow with every payload."""
    step = max((1 << (nbytes.bit_length() - 1)) // _STEPS_PER_DOUBLING, mmap.PAGESIZE)
    return -(-nbytes // step) * step


def _map(fd: int, nbytes: int, offset: int, *, writable: bool) -> memoryview:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return memoryview(mmap.mmap(fd, nbytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, protection, offset=offset))


def _allocate(fd: int, start: int, nbytes: int) -> None:
    """Allocates bytes of a file in memory.

    Raises:
        OSError: There is not that much.
    """
    available = available_nbytes() if nbytes >= _LOOK_FROM_NBYTES else None
    if nbytes > (_AREA_AT if available is None else min(available, _AREA_AT)):
        raise OSError(errno.ENOSPC, f"{nbytes} more are needed, {available} are available")
    os.posix_fallocate(fd, start, nbytes)


class _Area:
    """What of an area is mapped here; its address in the file never changes."""

    def __init__(self, fd: int, turn: int, *, writable: bool) -> None:
        self.start = (1 + turn) * _AREA_AT
        self.view = memoryview(b"")
        self._fd = fd
        self._writable = writable

    def map(self, nbytes: int) -> None:
        """Makes `view` that long; what was mapped before is unmapped once nobody has views of it."""
        self.view = _map(self._fd, nbytes, self.start, writable=self._writable)


class OwnRegion:
    """This rank's region.

    Args:
        fd: An empty file, which stays the caller's to close, after the region.
        slot_nbytes: Size of a slot, a multiple of 64.
        keep_nbytes: What an area keeps once smaller payloads come.

    Raises:
        OSError: No memory, or no descriptor for the mapping.
    """

    def __init__(self, fd: int, slot_nbytes: int, keep_nbytes: int) -> None:
        self._fd = fd
        self._keep_nbytes = _area_nbytes(keep_nbytes) if keep_nbytes else 0
        _allocate(fd, 0, _slots_nbytes(slot_nbytes))
        both = _map(fd, _slots_nbytes(slot_nbytes), 0, writable=True)
        self.slots = (both[:slot_nbytes], both[slot_nbytes : 2 * slot_nbytes])
        """For even and odd exchanges."""
        self.num_oversized = 0
        """How many areas hold more than is to be kept: where it is not 0, `rest` wants to hear of small payloads."""
        self._areas = (_Area(fd, 0, writable=True), _Area(fd, 1, writable=True))
        self._allocated = [0, 0]
        self._num_small = [0, 0]

    def large_slot(self, turn: int, nbytes: int) -> memoryview:
        """Returns at least `nbytes` of memory, in place of the slot of even or odd exchanges.

        Raises:
            MemoryError: There is not that much, or no descriptor for the mapping; the region is as it was.
        """
        if nbytes > self._allocated[turn]:
            try:
                self._grow(turn, _area_nbytes(nbytes))
            except OSError as exc:
                raise MemoryError(f"no {nbytes} bytes of shared memory: {exc.strerror or exc}") from exc
        if nbytes > self._keep_nbytes:
            self._num_small[turn] = 0
        else:
            self.rest(turn)
        return self._areas[turn].view[: align(nbytes)]

    def written(self, turn: int, nbytes: int) -> memoryview:
        """Returns what this rank has put into that area, read-only."""
        return self._areas[turn].view[:nbytes].toreadonly()

    def rest(self, turn: int) -> None:
        """Hears of a payload that needs no more than what is kept; gives memory back after some of them.

        To be called when no rank reads that slot any more.
        """
        if self._allocated[turn] <= self._keep_nbytes:
            return
        self._num_small[turn] += 1
        if self._num_small[turn] >= _SHRINK_AFTER:
            self._shrink(turn)

    def _grow(self, turn: int, nbytes: int) -> None:
        area, allocated = self._areas[turn], self._allocated[turn]
        _allocate(self._fd, area.start + allocated, nbytes - allocated)
        if nbytes > len(area.view):
            area.map(nbytes)
        self._allocated[turn] = nbytes
        self._num_small[turn] = 0
        self._count_oversized()

    def _shrink(self, turn: int) -> None:
        mapping = self._areas[turn].view.obj
        keep = self._keep_nbytes
        if isinstance(mapping, mmap.mmap):
            mapping.madvise(mmap.MADV_REMOVE, keep, self._allocated[turn] - keep)
        self._allocated[turn] = keep
        self._count_oversized()

    def _count_oversized(self) -> None:
        self.num_oversized = sum(nbytes > self._keep_nbytes for nbytes in self._allocated)


class PeerRegion:
    """Another rank's region, read-only.

    Args:
        fd: The file, which stays the caller's to close, after the region.
        slot_nbytes: Size of a slot.

    Raises:
        OSError: No descriptor for the mapping.
    """

    def __init__(self, fd: int, slot_nbytes: int) -> None:
        both = _map(fd, _slots_nbytes(slot_nbytes), 0, writable=False)
        self.slots = (both[:slot_nbytes], both[slot_nbytes : 2 * slot_nbytes])
        self._areas = (_Area(fd, 0, writable=False), _Area(fd, 1, writable=False))

    def large_slot(self, turn: int, nbytes: int) -> memoryview:
        """Returns the payload of an even or odd exchange that its rank has put into the area.

        Raises:
            OSError: No descriptor or address space for the mapping.
        """
        area = self._areas[turn]
        if nbytes > len(area.view):
            area.map(_area_nbytes(nbytes))
        return area.view[:nbytes]
