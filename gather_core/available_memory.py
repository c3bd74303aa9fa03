"""How much memory this process may still take, so that asking for more is an error before the kernel kills somebody.

Memory without a name in a file system has no other bound: the kernel allocates until nothing is left, and then ends
processes. What is told here is a snapshot, and other processes take memory too.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_KIB = 1024
_ROOT = Path("/")


def available_nbytes(root: Path = _ROOT) -> int | None:
    """Returns what host and control groups leave, without swap, in bytes; None where neither is told.

    Args:
        root: Where /proc and /sys are.
    """
    left = [*_of_host(root), *_of_control_groups(root)]
    return max(min(left), 0) if left else None


def _of_host(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * _KIB


def _of_control_groups(root: Path) -> Iterator[int]:
    """What each group above this process leaves; version 2 has one hierarchy, version 1 one for memory."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        top = root / "sys/fs/cgroup"
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top /= "memory"
        inside = PurePosixPath(path).relative_to("/")
        for folder in (inside, *inside.parents):
            yield from _of_group(top / folder, *names)


def _of_group(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[int]:
    limit, usage = _lines(folder / limit_name), _lines(folder / usage_name)
    if not limit or not usage or limit[0] == "max":
        return
    cached = [line.split()[1] for line in _lines(folder / "memory.stat") if line.split()[0] == cache_name]
    yield int(limit[0]) - int(usage[0]) + sum(map(int, cached))  # what is cached of files makes room


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
