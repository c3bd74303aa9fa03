"""One rank's memory: two slots, and behind each an area for larger payloads. Its rank writes it, all others read it.

The file has holes: each area begins at a distance from the slots that no payload bridges, so that it can grow where it
is. What is used of it is allocated first, so that a full file system is an error here and not a SIGBUS; what is no
longer used is given back by punching a hole. The file is never truncated, nor a mapping resized: a growing area gets a
second, longer mapping, and the first ends with its last view.
"""

import mmap

from gather_core.errors import TransportError
from gather_core.memory import align
from gather_transports.allocation import Allocator
from gather_transports.owned_descriptor import Descriptor
from gather_transports.shared_mapping import map_file

_AREA_AT = 1 << 42
"""More than any payload, in bytes; the file is shorter than 16 TiB, which is as long as ext4 allows."""
_STEPS_PER_DOUBLING = 8
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


class _Area:
    """What of an area is mapped here; its address in the file never changes."""

    def __init__(self, file: Descriptor, turn: int, *, writable: bool) -> None:
        self.start = (1 + turn) * _AREA_AT
        self.view = memoryview(b"")
        self._file = file
        self._writable = writable

    def map(self, nbytes: int) -> None:
        """Makes `view` that long; what was mapped before is unmapped once nobody has views of it."""
        with self._file as fd:
            self.view = map_file(fd, nbytes, self.start, writable=self._writable)


def _map_slots(file: Descriptor, slot_nbytes: int, *, writable: bool) -> tuple[memoryview, memoryview]:
    with file as fd:
        both = map_file(fd, _slots_nbytes(slot_nbytes), writable=writable)
    return both[:slot_nbytes], both[slot_nbytes : 2 * slot_nbytes]


class OwnRegion:
    """This rank's region.

    Args:
        file: An empty file, which stays the caller's to close.
        slot_nbytes: Size of a slot, a multiple of 64.
        keep_nbytes: What an area keeps once smaller payloads come.
        allocator: Of that file.

    Raises:
        OSError: No memory.
        TransportError: The file has been closed by another thread.
        BaseException: What the allocator's `check_interrupt` raises, or a signal's handler.
    """

    def __init__(self, file: Descriptor, slot_nbytes: int, keep_nbytes: int, allocator: Allocator) -> None:
        self._allocator = allocator
        self._keep_nbytes = _area_nbytes(keep_nbytes) if keep_nbytes else 0
        allocator.allocate(0, _slots_nbytes(slot_nbytes))
        self.slots = _map_slots(file, slot_nbytes, writable=True)
        """For even and odd exchanges."""
        self.num_oversized = 0
        """How many areas hold more than is to be kept: where it is not 0, `rest` wants to hear of small payloads."""
        self._areas = (_Area(file, 0, writable=True), _Area(file, 1, writable=True))
        self._allocated = [0, 0]
        self._num_small = [0, 0]

    def large_slot(self, turn: int, nbytes: int) -> memoryview:
        """Returns at least `nbytes` of memory, in place of the slot of even or odd exchanges.

        Raises:
            MemoryError: There is not that much, or no address space; the region is as it was.
            TransportError, BaseException: As the constructor; the region is as it was.
        """
        if nbytes > self._allocated[turn]:
            try:
                self._grow(turn, _area_nbytes(nbytes))
            except TransportError:  # a timeout of ours is an OSError too
                raise
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
        start, more_nbytes = area.start + allocated, nbytes - allocated
        self._allocator.allocate(start, more_nbytes)
        try:
            if nbytes > len(area.view):
                area.map(nbytes)
        except BaseException:
            self._allocator.give_back(start, more_nbytes)
            raise
        self._allocated[turn] = nbytes
        self._num_small[turn] = 0
        self._count_oversized()

    def _shrink(self, turn: int) -> None:
        keep, allocated = self._keep_nbytes, self._allocated[turn]
        if self._allocator.give_back(self._areas[turn].start + keep, allocated - keep):
            self._allocated[turn] = keep
        else:
            self._keep_nbytes = _AREA_AT  # trying again would fail again
        self._count_oversized()

    def _count_oversized(self) -> None:
        self.num_oversized = sum(nbytes > self._keep_nbytes for nbytes in self._allocated)


class PeerRegion:
    """Another rank's region, read-only.

    Args:
        file: The file, which stays the caller's to close.
        slot_nbytes: Size of a slot.

    Raises:
        OSError: The file is shorter, or no address space.
    """

    def __init__(self, file: Descriptor, slot_nbytes: int) -> None:
        self.slots = _map_slots(file, slot_nbytes, writable=False)
        self._areas = (_Area(file, 0, writable=False), _Area(file, 1, writable=False))

    def large_slot(self, turn: int, nbytes: int) -> memoryview:
        """Returns the payload of an even or odd exchange that its rank has put into the area.

        Raises:
            OSError: The file is shorter, or no address space.
            TransportError: The file has been closed by another thread.
        """
        area = self._areas[turn]
        if nbytes > len(area.view):
            area.map(_area_nbytes(nbytes))
        return area.view[:nbytes]
