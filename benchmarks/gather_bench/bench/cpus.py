"""The processors of this machine."""

import os
import platform
from contextlib import suppress
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def cpu_count() -> int:
    """CPUs that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_core() -> int | None:
    """How many CPUs are threads of one core, on the first one that this process may use; None where nothing says so."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    topology = Path(f"/sys/devices/system/cpu/cpu{min(os.sched_getaffinity(0))}/topology/thread_siblings")
    with suppress(OSError, ValueError):
        return int(topology.read_text(encoding="ascii").replace(",", ""), 16).bit_count() or None
    return None


def cpu_model() -> str:
    """What Linux calls it; where it says nothing, what Python knows."""
    with suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
