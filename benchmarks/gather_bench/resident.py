"""How much memory of this process is resident, and how much more at the peak of one step. Linux only."""

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gather_core import drop_free_blocks

CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
"""What resets VmHWM when written to clear_refs: see proc_pid_clear_refs(5)."""


def reset_peak() -> int:
    """Returns the resident size from which the peak now starts, in bytes."""
    CLEAR_REFS.write_text(_RESET_PEAK)
    return _status_nbytes("VmRSS")


def peak_nbytes() -> int:
    """Returns the largest resident size since the reset, in bytes."""
    return _status_nbytes("VmHWM")


def peak_above_before(step: Callable[[], object]) -> int | None:
    """Runs a step and returns how far the resident size rose in it, in bytes; None where the system does not tell.

    What lies idle in this process is given back first: else the step would use that again, and nothing would rise.
    The kernel counts in batches of pages: a few hundred KiB may be missing, or too much.
    """
    give_idle_memory_back()
    try:
        before = reset_peak()
    except OSError:
        step()
        return None
    result = step()
    risen = peak_nbytes() - before
    del result
    return max(0, risen)


def give_idle_memory_back() -> None:
    """Drops garbage and what gather-core and glibc keep for later."""
    gc.collect()
    drop_free_blocks()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _status_nbytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no {field}")
    return int(found[1]) * 1024
