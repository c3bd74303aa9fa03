"""What a process has at one time that a fault could leave behind (Linux)."""

import gc
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Traces:
    """Threads and descriptors of this process, by their kinds."""

    threads: Counter[str] = field(default_factory=Counter)
    descriptors: Counter[str] = field(default_factory=Counter)

    @classmethod
    def now(cls) -> "Traces":
        """Those that there are."""
        return cls(_kinds("/proc/self/task", _thread), _kinds("/proc/self/fd", _descriptor))

    def left(self, within_s: float = 6.0) -> "Traces":
        """What there is beyond these, once what is about to go has had time for it."""
        deadline = time.monotonic() + within_s
        while True:
            gc.collect()
            now = Traces.now()
            left = Traces(now.threads - self.threads, now.descriptors - self.descriptors)
            if not (left.threads or left.descriptors) or time.monotonic() > deadline:
                return left
            time.sleep(0.05)


def _kinds(folder: str, kind: Callable[[Path], str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in os.listdir(folder):
        with suppress(OSError):  # it has ended, or was the one of looking
            found[kind(Path(folder, entry))] += 1
    return found


def _thread(task: Path) -> str:
    return (task / "comm").read_text().strip()


def _descriptor(link: Path) -> str:
    """Without the number of a socket or pipe, which is another one each time."""
    target = os.readlink(link)
    if target.startswith("/proc/"):
        raise FileNotFoundError(target)
    return target.partition(":[")[0]
