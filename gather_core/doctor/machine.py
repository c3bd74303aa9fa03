"""The facts about the machine: memory, limits, processors, and which host this is."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from xxhash import xxh3_64_hexdigest

from gather_core.available_memory import available_nbytes
from gather_core.background import run_bounded
from gather_core.doctor.facts import Cores, Host, Interface, Memory, Network, OwnName, ProcessLimits
from gather_core.host_identity import kernel_identity

_ROOT = Path("/")
_RESOLVE_WITHIN_S = 5.0
_LOOPBACK = 0x8
"""IFF_LOOPBACK of Linux."""
_IPV4_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux."""


def look_at_memory() -> Memory:
    """Reads what is left of memory, and of /dev/shm."""
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:
        return Memory(available_nbytes(), None, None)
    return Memory(available_nbytes(), shm.f_frsize * shm.f_blocks, shm.f_frsize * shm.f_bavail)


def look_at_limits() -> ProcessLimits:
    """Reads the limits of this process."""
    try:
        import resource
    except ImportError:  # not a Unix
        return ProcessLimits(None, None, None)

    def limit(number: int, which: int) -> int | None:
        value = resource.getrlimit(number)[which]
        return None if value == resource.RLIM_INFINITY else value

    files = resource.RLIMIT_NOFILE
    return ProcessLimits(limit(files, 0), limit(files, 1), limit(resource.RLIMIT_FSIZE, 0))


def look_at_cores(root: Path = _ROOT) -> Cores:
    """Reads which processors this process may use, and how much of them.

    Args:
        root: Where /proc and /sys are.
    """
    online = os.cpu_count() or 1
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(online)
    return Cores(tuple(usable), online, min(_quotas(root), default=None))


def _quotas(root: Path) -> Iterator[float]:
    """What each control group above this process grants, in processors; version 1 has a hierarchy per controller."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        inside = PurePosixPath(path).relative_to("/")
        for folder in (inside, *inside.parents):
            if controllers:
                group = top / "cpu" / folder
                quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
            else:
                quota, _, period = _read(top / folder / "cpu.max").partition(" ")
            if quota.strip().isdigit() and period.strip().isdigit():  # neither "max" nor -1
                yield int(quota) / int(period)


def look_at_host() -> Host:
    """Identifies this host by texts that can be compared and tell nothing else."""
    boot = _read(Path("/proc/sys/kernel/random/boot_id"))
    identity = kernel_identity()
    return Host(
        xxh3_64_hexdigest(boot.encode()) if boot else None,
        _network_identity(boot),
        None if identity is None else xxh3_64_hexdigest(identity.encode()),
    )


def _network_identity(boot: str) -> str | None:
    try:
        namespace = Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return None
    return xxh3_64_hexdigest(f"{boot} {namespace}".encode()) if boot else None


def look_at_network() -> Network:
    """Reads where this host could be reached; waits at most 5 s for its name."""
    return Network(_interfaces(), _own_name())


def _interfaces() -> dict[str, Interface]:
    if not Path("/sys/class/net").exists():
        return {}
    ipv6 = {line.split()[5] for line in _read(Path("/proc/net/if_inet6")).splitlines() if line.split()[3] == "00"}
    return {name: _kind_of_interface(name, name in ipv6) for _, name in socket.if_nameindex()}


def _kind_of_interface(name: str, has_ipv6: bool) -> Interface:
    flags = _read(Path("/sys/class/net") / name / "flags")
    if flags and int(flags, 16) & _LOOPBACK:
        return "loopback"
    return "connected" if has_ipv6 or _has_ipv4(name) else "unconnected"


def _has_ipv4(name: str) -> bool:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, _IPV4_ADDRESS, name.encode()[:15].ljust(40, b"\0"))
        except OSError:
            return False
    return True


def _own_name() -> OwnName:
    try:
        found = run_bounded(
            lambda: socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM), _RESOLVE_WITHIN_S
        )
    except TimeoutError:
        return "late"
    except OSError:
        return "nothing"
    for family, kind, protocol, _, address in found:
        if _can_listen_on(family, kind, protocol, address):
            host = str(address[0])
            return "loopback" if host == "::1" or host.startswith("127.") else "own"
    return "elsewhere"


def _can_listen_on(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, kind, protocol) as listening:
            listening.bind(address)
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
