"""A rank's memory: how it grows for a payload, shrinks again, and never moves what somebody reads."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from gather_core.available_memory import available_nbytes
from gather_transports import allocation, shm_region
from gather_transports.allocation import Allocator
from gather_transports.c_library import c_function
from gather_transports.owned_descriptor import Descriptor
from gather_transports.shared_file import create_file
from gather_transports.shared_mapping import map_file
from gather_transports.shm_control import Extent
from gather_transports.shm_region import OwnRegion, PeerRegion

SLOT = 1024
MIB = 1 << 20
KEEP = 1 * MIB


@pytest.fixture
def file() -> Iterator[Descriptor]:
    file = Descriptor(create_file(""))
    yield file
    file.close()


def status(file: Descriptor) -> os.stat_result:
    with file as fd:
        return os.fstat(fd)


def allocated_nbytes(file: Descriptor) -> int:
    return status(file).st_blocks * 512


def num_mappings(file: Descriptor) -> int:
    inode = f" {status(file).st_ino} "
    return sum(inode in line for line in Path("/proc/self/maps").read_text().splitlines())


def never() -> None:
    """Interrupts nothing."""


def own_region(
    file: Descriptor, keep_nbytes: int = KEEP, *, num_ranks: int = 1, check_interrupt: Callable[[], None] = never
) -> OwnRegion:
    return OwnRegion(file, SLOT, keep_nbytes, Allocator(file, num_ranks, check_interrupt))


def num_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def exchange(own: OwnRegion, nbytes: int, last: int = 0) -> Extent:
    """Hands over a payload of that length; its last byte is `last`."""
    own.large_slot(nbytes)[nbytes - 1] = last
    return own.hand_over(nbytes)


def small_exchange(own: OwnRegion) -> None:
    own.rest()
    own.hand_over_slot()


def test_what_a_rank_writes_is_what_its_peer_reads_in_slots_and_in_areas_of_any_size(file: Descriptor) -> None:
    own, peer = own_region(file, KEEP), PeerRegion(file, SLOT)
    for turn in (0, 1):
        own.slots[turn][:4] = b"slot"
        assert bytes(peer.slots[turn][:4]) == b"slot"
    for number, nbytes in enumerate(2 * (SLOT + 1, 5000, 3 * MIB, 200_000, 7 * MIB + 3)):
        written = own.large_slot(nbytes)
        assert len(written) >= nbytes
        written[:nbytes] = bytes([number]) * nbytes
        extent = own.hand_over(nbytes)
        assert bytes(peer.written(extent)) == bytes([number]) * nbytes
        assert bytes(own.written(extent)) == bytes([number]) * nbytes


@pytest.mark.fault(37)
def test_a_peer_cannot_write(file: Descriptor) -> None:
    own, peer = own_region(file, KEEP), PeerRegion(file, SLOT)
    assert peer.slots[0].readonly
    assert peer.written(exchange(own, 5000)).readonly


def test_a_payload_is_left_alone_while_the_next_is_written(file: Descriptor) -> None:
    own, peer = own_region(file), PeerRegion(file, SLOT)
    for number in range(6):
        before = peer.written(exchange(own, 5000, number))
        for _ in range(2):  # as where the first try fails
            own.large_slot(5000 if number % 2 else 9000)[:5000] = b"x" * 5000
        assert before[4999] == number


def test_views_stay_as_they_are_while_the_area_grows(file: Descriptor) -> None:
    own, peer = own_region(file, KEEP), PeerRegion(file, SLOT)
    written_before = own.large_slot(5000)
    before = peer.written(exchange(own, 5000))
    small_exchange(own)
    after = peer.written(exchange(own, 9 * MIB, 7))
    assert after[9 * MIB - 1] == 7
    written_before[4999] = 8
    assert before[4999] == after[4999] == 8, "both mappings show the same memory"


def test_areas_shrink_to_what_is_kept_once_several_small_payloads_came(file: Descriptor) -> None:
    own = own_region(file, KEEP)
    slots_nbytes = allocated_nbytes(file)
    for _ in range(5):
        exchange(own, 20 * MIB)
    assert 40 * MIB <= allocated_nbytes(file) < 50 * MIB, "two areas in turn"
    was_oversized = own.is_oversized
    for number in range(40):
        if number % 2:
            exchange(own, 2000)
        else:
            small_exchange(own)
    assert (was_oversized, own.is_oversized) == (True, False)
    assert allocated_nbytes(file) == slots_nbytes + 2 * KEEP
    assert status(file).st_size > 20 * MIB, "it is never truncated"


def test_what_peers_still_read_does_not_shrink(file: Descriptor) -> None:
    own, peer = own_region(file, 0), PeerRegion(file, SLOT)
    view = peer.written(exchange(own, 4 * MIB, 5))
    for _ in range(40):
        own.rest()
    assert view[4 * MIB - 1] == 5
    own.hand_over_slot()
    for _ in range(40):
        own.rest()
    assert allocated_nbytes(file) < 1 * MIB


def test_large_payloads_in_between_keep_the_memory(file: Descriptor) -> None:
    own = own_region(file, KEEP)
    for _ in range(5):
        exchange(own, 20 * MIB)
        for _ in range(7):
            small_exchange(own)
    assert allocated_nbytes(file) >= 20 * MIB


def test_a_peer_may_look_at_what_has_shrunk_and_at_what_grows_again(file: Descriptor) -> None:
    own, peer = own_region(file, 0), PeerRegion(file, SLOT)
    own.large_slot(4 * MIB)[: 4 * MIB] = b"x" * (4 * MIB)
    view = peer.written(own.hand_over(4 * MIB))
    for _ in range(40):
        small_exchange(own)
    assert allocated_nbytes(file) < 1 * MIB
    assert view[3 * MIB] == 0, "no SIGBUS"
    own.large_slot(4 * MIB)[: 4 * MIB] = b"y" * (4 * MIB)
    assert bytes(view) == b"y" * (4 * MIB)


def test_nothing_is_left_of_thousands_of_growing_and_shrinking_payloads(file: Descriptor) -> None:
    own, peer = own_region(file, 64 * 1024), PeerRegion(file, SLOT)
    before = num_descriptors()
    for number in range(2000):
        nbytes = 2000 + 997 * (number % 211) if number % 20 < 4 else 2000
        assert peer.written(exchange(own, nbytes, 1 + number % 200))[nbytes - 1] == 1 + number % 200
    assert num_mappings(file) <= 6, "one for both slots, and one per area, of each side"
    assert num_descriptors() == before
    del own, peer
    assert num_mappings(file) == 0


def test_a_signal_that_comes_when_memory_is_unmapped_is_not_lost(file: Descriptor) -> None:
    own_region(file)
    with file as fd:
        views = [map_file(fd, 4096, writable=False)]

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    called: list[str] = []
    sys.setprofile(look)
    try:
        views.clear()
    finally:
        sys.setprofile(None)
    assert num_mappings(file) == 0
    assert called == [], "a handler that raises inside a finalizer raises nothing"


def test_an_area_that_cannot_grow_leaves_the_region_usable(file: Descriptor, monkeypatch: pytest.MonkeyPatch) -> None:
    own, peer = own_region(file, KEEP), PeerRegion(file, SLOT)

    def full(fd: int, offset: int, nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(MemoryError, match="no 5000 bytes of shared memory: No space left on device"):
            own.large_slot(5000)
    assert peer.written(exchange(own, 5000, 9))[4999] == 9


@pytest.mark.parametrize(
    ("nbytes", "available", "text"),
    [
        (5 * MIB, 4 * MIB, f"{5 * MIB} more are needed, {4 * MIB} are available"),
        (1 << 41, None, f"{1 << 40} are the most"),
        (1 << 50, 1 << 60, f"{1 << 40} are the most"),
    ],
)
@pytest.mark.fault(32)
def test_more_than_there_is_is_refused_before_the_kernel_has_to_end_somebody(
    file: Descriptor, monkeypatch: pytest.MonkeyPatch, nbytes: int, available: int | None, text: str
) -> None:
    own = own_region(file, KEEP)
    allocated: list[int] = []
    monkeypatch.setattr(allocation, "available_nbytes", lambda: available)
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, start, nbytes: allocated.append(nbytes))
    with pytest.raises(MemoryError, match=f"no {nbytes} bytes of shared memory: {text}"):
        own.large_slot(nbytes)
    assert allocated == []


def test_ranks_that_grow_at_once_see_what_the_others_take_and_keep_nothing_where_it_is_not_enough(
    file: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_region(file, num_ranks=3)
    before = allocated_nbytes(file)
    host_nbytes = before + 150 * MIB
    monkeypatch.setattr(allocation, "available_nbytes", lambda: host_nbytes - 3 * allocated_nbytes(file))
    text = r"\d+ more are needed, \d+ are available"
    with pytest.raises(MemoryError, match=f"no {64 * MIB} bytes of shared memory: {text}"):
        own.large_slot(64 * MIB)  # of which 3 ranks have 192 in all
    assert allocated_nbytes(file) == before
    own.large_slot(32 * MIB)[32 * MIB - 1] = 1


def test_a_step_leaves_room_for_a_step_of_every_other_rank(file: Descriptor, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_region(file, num_ranks=4)
    before = allocated_nbytes(file)
    monkeypatch.setattr(allocation, "available_nbytes", lambda: 60 * MIB + before - allocated_nbytes(file))
    text = f"{16 * MIB} more are needed, {60 * MIB} are available, of which {48 * MIB} are left to the other ranks"
    with pytest.raises(MemoryError, match=text):
        own.large_slot(16 * MIB)
    own.large_slot(8 * MIB)


def test_growing_can_be_interrupted_and_keeps_nothing_then(file: Descriptor) -> None:
    sizes: list[int] = []

    def interrupt() -> None:
        sizes.append(allocated_nbytes(file))
        if len(sizes) == 3:
            raise KeyboardInterrupt

    own = own_region(file, check_interrupt=interrupt)
    before = allocated_nbytes(file)
    with pytest.raises(KeyboardInterrupt):
        own.large_slot(128 * MIB)
    assert [nbytes - before for nbytes in sizes] == [16 * MIB, 32 * MIB, 48 * MIB]
    assert allocated_nbytes(file) == before


def test_memory_that_cannot_be_mapped_is_given_back(file: Descriptor, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_region(file)
    before = allocated_nbytes(file)

    def no_room(*_: object, **__: object) -> memoryview:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(shm_region, "map_file", no_room)
        with pytest.raises(MemoryError, match=f"no {20 * MIB} bytes of shared memory: Cannot allocate memory"):
            own.large_slot(20 * MIB)
    assert allocated_nbytes(file) == before
    own.large_slot(20 * MIB)[20 * MIB - 1] = 1


def test_memory_that_is_locked_is_given_back_too(file: Descriptor) -> None:
    own = own_region(file, 0)
    before = allocated_nbytes(file)
    area = own.large_slot(64 * 1024)
    lock = c_function("mlock", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    if lock(ctypes.addressof(ctypes.c_char.from_buffer(area)), len(area)) != 0:
        pytest.skip("no memory may be locked here")
    for _ in range(40):
        small_exchange(own)
    assert allocated_nbytes(file) == before


def test_where_no_hole_can_be_made_an_area_keeps_its_size_and_says_so_once(
    file: Descriptor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = own_region(file)

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(allocation, "punch_hole", refuse)
    for _ in range(2):
        exchange(own, 4 * MIB)
    for _ in range(80):
        small_exchange(own)
    (text,) = caplog.messages
    assert text == f"{3 * MIB} bytes of shared memory are kept until the end: Operation not supported"
    assert not own.is_oversized
    assert own.large_slot(4 * MIB).nbytes == 4 * MIB


def test_what_is_not_in_the_file_cannot_be_mapped(file: Descriptor) -> None:
    own_region(file)
    with pytest.raises(OSError, match="the file ends before byte"):
        PeerRegion(file, SLOT).written(Extent(5000, 0, lent=False))


def test_what_is_available_is_what_the_host_and_every_control_group_leave(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert available_nbytes(tmp_path) is None
    write("proc/meminfo", "MemTotal: 900 kB\nMemAvailable:     800 kB\n")
    assert available_nbytes(tmp_path) == 800 * 1024
    write("proc/self/cgroup", "4:cpu,memory:/a/b\n3:cpuset:/c\n0::/d\n")
    write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712")
    write("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "100")
    assert available_nbytes(tmp_path) == 800 * 1024
    write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "5000")
    write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "4000")
    write("sys/fs/cgroup/memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n")
    assert available_nbytes(tmp_path) == 1500
    write("sys/fs/cgroup/d/memory.max", "max")
    write("sys/fs/cgroup/d/memory.current", "7")
    write("sys/fs/cgroup/memory.max", "1000")
    write("sys/fs/cgroup/memory.current", "1200")
    write("sys/fs/cgroup/memory.stat", "anon 900\ninactive_file 150\n")
    assert available_nbytes(tmp_path) == 0
    write("sys/fs/cgroup/memory.current", "900")
    assert available_nbytes(tmp_path) == 250


@pytest.mark.fault(37)
def test_a_file_cannot_be_truncated_below_its_readers(file: Descriptor) -> None:
    own_region(file, KEEP)
    with file as fd, pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
