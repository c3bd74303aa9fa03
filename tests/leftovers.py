"""What is left on this machine when it should be gone (Linux)."""

import time
from collections.abc import Callable
from pathlib import Path


def shared_memory() -> set[str]:
    """Entries of /dev/shm that no process has mapped: those of other jobs on this machine are in use."""
    names = {path.name for path in Path("/dev/shm").glob("*")}
    if not names:
        return names
    mapped = "".join(_read(maps) for maps in Path("/proc").glob("[0-9]*/maps"))
    return {name for name in names if f"/dev/shm/{name}\n" not in mapped}


def still_there(look: Callable[[], set[str]], before: set[str], within_s: float = 3) -> set[str]:
    """What is new and stays: another job's temporary things go, and a resource tracker needs a moment to unlink."""
    deadline = time.monotonic() + within_s
    left = look() - before
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= look()
    return left


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has ended, or is another user's
        return ""
