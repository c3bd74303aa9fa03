"""A rank's memory: how it grows for a payload, shrinks again, and never moves what somebody reads."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gather_core.available_memory import available_nbytes
from gather_transports import shm_region
from gather_transports.shared_file import create_file
from gather_transports.shm_region import OwnRegion, PeerRegion

SLOT = 1024
MIB = 1 << 20
KEEP = 1 * MIB


@pytest.fixture
def fd() -> Iterator[int]:
    fd = create_file("")
    yield fd
    os.close(fd)


def allocated_nbytes(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def num_mappings(fd: int) -> int:
    inode = f" {os.fstat(fd).st_ino} "
    return sum(inode in line for line in Path("/proc/self/maps").read_text().splitlines())


def num_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_what_a_rank_writes_is_what_its_peer_reads_in_slots_and_in_areas_of_any_size(fd: int) -> None:
    own, peer = OwnRegion(fd, SLOT, KEEP), PeerRegion(fd, SLOT)
    for turn in (0, 1):
        own.slots[turn][:4] = b"slot"
        assert bytes(peer.slots[turn][:4]) == b"slot"
        for nbytes in (SLOT + 1, 5000, 3 * MIB, 200_000, 7 * MIB + 3):
            written = own.large_slot(turn, nbytes)
            assert len(written) >= nbytes
            written[:nbytes] = bytes([turn + 1]) * nbytes
            assert bytes(peer.large_slot(turn, nbytes)) == bytes([turn + 1]) * nbytes


def test_a_peer_cannot_write(fd: int) -> None:
    own, peer = OwnRegion(fd, SLOT, KEEP), PeerRegion(fd, SLOT)
    own.large_slot(0, 5000)
    assert peer.slots[0].readonly
    assert peer.large_slot(0, 5000).readonly


def test_views_stay_as_they_are_while_the_area_grows(fd: int) -> None:
    own, peer = OwnRegion(fd, SLOT, KEEP), PeerRegion(fd, SLOT)
    own.large_slot(0, 5000)[:5000] = b"a" * 5000
    before = peer.large_slot(0, 5000)
    written_before = own.large_slot(0, 5000)
    own.large_slot(0, 9 * MIB)[9 * MIB - 1] = 7
    assert peer.large_slot(0, 9 * MIB)[9 * MIB - 1] == 7
    assert bytes(before) == b"a" * 5000
    written_before[0] = 8
    assert peer.large_slot(0, 9 * MIB)[0] == 8, "both mappings show the same memory"


def test_an_area_shrinks_to_what_is_kept_once_several_small_payloads_came(fd: int) -> None:
    own = OwnRegion(fd, SLOT, KEEP)
    slots_nbytes = allocated_nbytes(fd)
    own.large_slot(0, 20 * MIB)
    own.large_slot(1, 20 * MIB)
    assert allocated_nbytes(fd) >= 40 * MIB
    assert own.num_oversized == 2
    for _ in range(10):
        own.rest(0)
        own.large_slot(1, 2000)
    assert own.num_oversized == 0
    assert allocated_nbytes(fd) == slots_nbytes + 2 * KEEP
    assert os.fstat(fd).st_size > 20 * MIB, "it is never truncated"


def test_large_payloads_in_between_keep_the_memory(fd: int) -> None:
    own = OwnRegion(fd, SLOT, KEEP)
    own.large_slot(0, 20 * MIB)
    for _ in range(5):
        for _ in range(3):
            own.rest(0)
        own.large_slot(0, 20 * MIB)
    assert allocated_nbytes(fd) >= 20 * MIB


def test_a_peer_may_look_at_what_has_shrunk_and_at_what_grows_again(fd: int) -> None:
    own, peer = OwnRegion(fd, SLOT, 0), PeerRegion(fd, SLOT)
    own.large_slot(0, 4 * MIB)[: 4 * MIB] = b"x" * (4 * MIB)
    view = peer.large_slot(0, 4 * MIB)
    for _ in range(10):
        own.rest(0)
    assert allocated_nbytes(fd) < 1 * MIB
    assert view[3 * MIB] == 0, "no SIGBUS"
    own.large_slot(0, 4 * MIB)[: 4 * MIB] = b"y" * (4 * MIB)
    assert bytes(view) == b"y" * (4 * MIB)


def test_nothing_is_left_of_thousands_of_growing_and_shrinking_payloads(fd: int) -> None:
    own, peer = OwnRegion(fd, SLOT, 64 * 1024), PeerRegion(fd, SLOT)
    before = num_descriptors()
    for number in range(2000):
        nbytes = 2000 + 997 * (number % 211) if number % 20 < 4 else 2000
        own.large_slot(number % 2, nbytes)[nbytes - 1] = 1 + number % 200
        assert peer.large_slot(number % 2, nbytes)[nbytes - 1] == 1 + number % 200
    assert num_mappings(fd) <= 6, "one for both slots, and one per area, of each side"
    assert num_descriptors() <= before + 4
    del own, peer
    assert num_mappings(fd) == 0


def test_an_area_that_cannot_grow_leaves_the_region_usable(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own, peer = OwnRegion(fd, SLOT, KEEP), PeerRegion(fd, SLOT)

    def full(fd: int, offset: int, nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(MemoryError, match="no 5000 bytes of shared memory: No space left on device"):
            own.large_slot(0, 5000)
    own.large_slot(0, 5000)[:4] = b"fine"
    assert bytes(peer.large_slot(0, 5000)[:4]) == b"fine"


@pytest.mark.parametrize(("nbytes", "available"), [(5 * MIB, 4 * MIB), (1 << 43, None), (1 << 50, 1 << 60)])
def test_more_than_there_is_is_refused_before_the_kernel_has_to_end_somebody(
    fd: int, monkeypatch: pytest.MonkeyPatch, nbytes: int, available: int | None
) -> None:
    own = OwnRegion(fd, SLOT, KEEP)
    allocated: list[int] = []
    monkeypatch.setattr(shm_region, "available_nbytes", lambda: available)
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, start, nbytes: allocated.append(nbytes))
    with pytest.raises(MemoryError, match=f"no {nbytes} bytes of shared memory: .* more are needed, {available} are"):
        own.large_slot(0, nbytes)
    assert allocated == []


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


def test_a_file_cannot_be_truncated_below_its_readers(fd: int) -> None:
    OwnRegion(fd, SLOT, KEEP)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
