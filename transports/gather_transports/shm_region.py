"""One rank's memory: two slots, and areas for larger payloads. Its rank writes it, all others read it.

The file has holes: each area begins at a distance from the one before that no payload bridges, so that it can grow
where it is. What is used of it is allocated first, so that a full file system is an error here and not a SIGBUS; what
is no longer used is given back by punching a hole. The file is never truncated, nor a mapping resized: a growing area
gets a second, longer mapping, and the first ends with its last view.

Two areas are enough for payloads that peers copy: one is read while the next is written. All others are for loans:
payloads that peers hand out as they are, for as long as they like (`shm_loans`).
"""

import errno
import mmap
import threading
from collections.abc import Iterator

from gather_core.errors import TransportError
from gather_core.memory import align
from gather_transports.allocation import Allocator
from gather_transports.owned_descriptor import Descriptor
from gather_transports.semaphores import Semaphore
from gather_transports.shared_mapping import map_file
from gather_transports.shm_control import NUM_AREAS, Extent
from gather_transports.shm_loans import Lender, borrow

LENT_FROM_NBYTES = 1 << 20
"""What mapping a loan and its pages costs is more than copying less than this, or hardly less."""
_AREA_AT = 1 << 40
"""The longest payload, in bytes; the file is shorter than 16 TiB, which is as long as ext4 allows."""
_NEVER_LENT = 2
_STEPS_PER_DOUBLING = 8
_MOST_UNUSED = 2
"""How much longer than its payload an area may be that is lent, in times: whoever keeps the one keeps the other."""
_SHRINK_AFTER = 16
"""Exchanges without need: a job that alternates between sizes should not allocate anew each time."""


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

    def __init__(self, file: Descriptor, number: int, *, writable: bool) -> None:
        self.number = number
        self.start = (1 + number) * _AREA_AT
        self.view = memoryview(b"")
        self.allocated_nbytes = 0
        self.used_at = 0
        """The exchange that has last needed all of it, or more than is kept anyway, or lent it."""
        self._file = file
        self._writable = writable

    def map(self, nbytes: int) -> None:
        """Makes `view` that long; what was mapped before is unmapped once nobody has views of it."""
        with self._file as fd:
            self.view = map_file(fd, nbytes, self.start, writable=self._writable)

    def borrow(self, nbytes: int, token: Semaphore, control: memoryview) -> memoryview:
        """Returns what its rank has lent; see `shm_loans.borrow`."""
        with self._file as fd:
            return borrow(fd, nbytes, self.start, token, control)


def _map_slots(file: Descriptor, slot_nbytes: int, *, writable: bool) -> tuple[memoryview, memoryview]:
    with file as fd:
        both = map_file(fd, _slots_nbytes(slot_nbytes), writable=writable)
    return both[:slot_nbytes], both[slot_nbytes : 2 * slot_nbytes]


class OwnRegion:
    """This rank's region.

    Args:
        file: An empty file, which stays the caller's to close.
        slot_nbytes: Size of a slot, a multiple of 64.
        keep_nbytes: What an area keeps once smaller payloads come, and half of what all of them keep.
        allocator: Of that file.

    Raises:
        OSError: No memory.
        TransportError: The file has been closed by another thread.
        BaseException: What the allocator's `check_interrupt` raises, or a signal's handler.
    """

    def __init__(self, file: Descriptor, slot_nbytes: int, keep_nbytes: int, allocator: Allocator) -> None:
        self._allocator = allocator
        self._keep_nbytes = _area_nbytes(keep_nbytes) if keep_nbytes else 0
        self._makes_holes = True
        allocator.allocate(0, _slots_nbytes(slot_nbytes))
        self.slots = _map_slots(file, slot_nbytes, writable=True)
        """For even and odd exchanges."""
        self.is_oversized = False
        """Whether areas hold more than is to be kept: then `rest` wants to hear of exchanges that use none."""
        self.is_read = False
        """Whether peers may still read an area that is not lent: then `hand_over_slot` wants to hear of slots."""
        self.lender: Lender | None = None
        """Where there is one, large payloads are lent."""
        self._areas = [_Area(file, number, writable=True) for number in range(NUM_AREAS)]
        self._next: _Area | None = None
        """Where the next payload goes."""
        self._being_read: _Area | None = None
        """What peers may still read of the last exchange, and nobody has borrowed."""
        self._was_read: _Area | None = None
        """As `_being_read`, of the exchange before: peers that are behind may read it until the last one has ended."""
        self._num_exchanges = 0
        self._shrink_at = _SHRINK_AFTER
        self._lock = threading.Lock()
        self._is_given_up = False

    def large_slot(self, nbytes: int, *, may_lend: bool = False) -> memoryview:
        """Returns at least `nbytes` of memory, in place of a slot; `may_lend` as it will be in `hand_over`.

        Raises:
            MemoryError: There is not that much, or no address space; the region is as it was.
            TransportError, BaseException: As the constructor; the region is as it was.
        """
        with self._lock:
            if self._is_given_up:
                raise TransportError("the transport is closed")
            self.rest()
            may_lend = may_lend and nbytes >= LENT_FROM_NBYTES and self.lender is not None
            area = self._free_area(nbytes, _MOST_UNUSED * nbytes if may_lend else _AREA_AT)
            if nbytes > area.allocated_nbytes:
                try:
                    self._grow_where_there_is_room(area, _area_nbytes(nbytes))
                except TransportError:  # a timeout of ours is an OSError too
                    raise
                except OSError as exc:
                    raise MemoryError(f"no {nbytes} bytes of shared memory: {exc.strerror or exc}") from exc
            self._next = area
            return area.view[: align(nbytes)]

    def hand_over(self, nbytes: int, *, may_lend: bool = False) -> Extent:
        """Says where the payload is that has been written into `large_slot`: from here on, peers read it."""
        area = self._next
        assert area is not None, "large_slot comes first"
        may_lend = may_lend and nbytes >= LENT_FROM_NBYTES and area.allocated_nbytes <= _MOST_UNUSED * nbytes
        lent = may_lend and self._lend(area)
        if lent or nbytes > self._keep_nbytes or area.allocated_nbytes <= _area_nbytes(nbytes):
            area.used_at = self._num_exchanges
        self._pass_on(None if lent else area)
        self._next = None  # last: where another thread gives up, it is to find the area as one in use at any time
        return Extent(nbytes, area.number, lent)

    def hand_over_slot(self) -> None:
        """Hears that what peers read from here on is in a slot."""
        self._next = None
        self._pass_on(None)

    def _pass_on(self, area: _Area | None) -> None:
        self._was_read, self._being_read = self._being_read, area
        self.is_read = self._was_read is not None or area is not None

    def give_up(self) -> None:
        """Gives back what nobody reads, as loans keep the file and all that is in it. From any thread, never waits."""
        if not self._lock.acquire(blocking=False):
            return  # another thread looks for an area, or lets it grow
        try:
            self._is_given_up = True
            self._give_back_idle(self._next, self._being_read, self._was_read)
        finally:
            self._lock.release()

    def written(self, extent: Extent) -> memoryview:
        """Returns what this rank has handed over, read-only."""
        return self._areas[extent.area].view[: extent.nbytes].toreadonly()

    def borrow(self, extent: Extent, token: Semaphore, control: memoryview) -> memoryview:
        """Returns what this rank has lent, as its peers do."""
        return self._areas[extent.area].borrow(extent.nbytes, token, control)

    def rest(self) -> None:
        """Hears of an exchange; gives back, now and then, what has not been needed in a while."""
        self._num_exchanges += 1
        if self.is_oversized and self._num_exchanges >= self._shrink_at:
            self._shrink()

    def _lend(self, area: _Area) -> bool:
        """Lends the area, unless too few are left then; returns whether it has."""
        if self.lender is None or sum(map(self._is_free, self._areas)) <= _NEVER_LENT:
            return False
        self.lender.lend(area.number)
        return True

    def _is_free(self, area: _Area) -> bool:
        return self.lender is None or not self.lender.is_lent(area.number)

    def _free_area(self, nbytes: int, longest: int) -> _Area:
        """The shortest from `nbytes` to `longest`, else the one that lacks the least, or what is left.

        Where payloads are alike, and too short to be lent, two areas take turns and the others need not be looked at.
        """
        last_but_one = self._was_read if longest == _AREA_AT else None
        if last_but_one is not None and nbytes <= last_but_one.allocated_nbytes <= _MOST_UNUSED * nbytes:
            return last_but_one
        free = [area for area in self._areas if area is not self._being_read and self._is_free(area)]
        lengths = [area.allocated_nbytes for area in free]
        fitting = [length for length in lengths if nbytes <= length <= longest]
        shorter = [length for length in lengths if length < nbytes]
        length = min(fitting) if fitting else max(shorter, default=min(lengths))
        return free[lengths.index(length)]

    def _grow_where_there_is_room(self, area: _Area, nbytes: int) -> None:
        """As `_grow`; where there is no memory for that, a second time with what other areas hold that nobody reads."""
        try:
            self._grow(area, nbytes)
        except OSError as exc:
            if isinstance(exc, TransportError) or not self._give_back_idle(area, self._being_read):
                raise
            self._grow(area, nbytes)

    def _grow(self, area: _Area, nbytes: int) -> None:
        if nbytes > _AREA_AT:
            raise OSError(errno.ENOSPC, f"{_AREA_AT} are the most")
        start, more_nbytes = area.start + area.allocated_nbytes, nbytes - area.allocated_nbytes
        self._allocator.allocate(start, more_nbytes)
        try:
            if nbytes > len(area.view):
                area.map(nbytes)
        except BaseException:
            self._allocator.give_back(start, more_nbytes)
            raise
        area.allocated_nbytes = nbytes
        self._look_whether_oversized()

    def _kept(self) -> Iterator[tuple[_Area, int]]:
        """What each area is to keep, the short ones first."""
        left = 2 * self._keep_nbytes
        for area in sorted(self._areas, key=lambda area: area.allocated_nbytes):
            keep = min(area.allocated_nbytes, self._keep_nbytes, left)
            left -= keep
            yield area, keep

    def _shrink(self) -> None:
        self._shrink_at = self._num_exchanges + _SHRINK_AFTER
        for area, keep in list(self._kept()):
            is_idle = self._num_exchanges - area.used_at >= _SHRINK_AFTER
            if area.allocated_nbytes <= keep or not is_idle or not self._is_free(area):
                continue
            if area is self._being_read:  # not in the next exchange
                self._shrink_at = self._num_exchanges + 1
            else:
                self._give_back(area, keep)
        self._look_whether_oversized()

    def _give_back(self, area: _Area, keep: int) -> None:
        if not self._makes_holes:
            return
        self._makes_holes = self._allocator.give_back(area.start + keep, area.allocated_nbytes - keep)
        if self._makes_holes:
            area.allocated_nbytes = keep

    def _give_back_idle(self, *in_use: _Area | None) -> bool:
        """Gives back what areas hold that are neither these nor lent; returns whether there were any."""
        idle = [area for area in self._areas if area.allocated_nbytes and area not in in_use and self._is_free(area)]
        for area in idle:
            self._give_back(area, 0)
        return bool(idle)

    def _look_whether_oversized(self) -> None:
        self.is_oversized = self._makes_holes and any(area.allocated_nbytes > keep for area, keep in self._kept())


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
        self._areas = [_Area(file, number, writable=False) for number in range(NUM_AREAS)]

    def written(self, extent: Extent) -> memoryview:
        """Returns what its rank has handed over.

        Raises:
            OSError: The file is shorter, or no address space.
            TransportError: The file has been closed by another thread.
        """
        area = self._areas[extent.area]
        if extent.nbytes > len(area.view):
            area.map(_area_nbytes(extent.nbytes))
        return area.view[: extent.nbytes]

    def borrow(self, extent: Extent, token: Semaphore, control: memoryview) -> memoryview:
        """Returns what its rank has lent: writable, and the caller's; see `shm_loans.borrow`."""
        return self._areas[extent.area].borrow(extent.nbytes, token, control)
