"""Looking at operations while they run: stats per tag, ranges in torch's profiler, a line in the log for each.

All of it is off until somebody asks for it, and then costs what it costs; to ask whether it is on takes 0.1 us.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from gather_core.call import Call
from gather_core.codec import Frames
from gather_core.slot import HEADER_NBYTES
from gather_core.stats import Stats

_log = logging.getLogger("gather_core")

_FIELD = {"encode": "encode_s", "round 1": "round_1_s", "round 2": "round_2_s", "decode": "decode_s"}


class Watcher:
    """What one Gatherer's operations are looked at with.

    Args:
        who: Names rank and group in the log.
        stats: Where the numbers go.
    """

    def __init__(self, who: str, stats: Stats) -> None:
        self.who = who
        self.stats = stats
        self._is_profiling = _profiler_state()

    def is_wanted(self) -> bool:
        """Whether anybody looks."""
        return self.stats.is_recording or _log.isEnabledFor(logging.DEBUG) or self._is_profiling()

    def watch(self, call: Call, seq: int) -> "Watch":
        """Looks at one operation."""
        return Watch(self, call, seq, in_profiler=self._is_profiling())


class Watch:
    """One operation. A context manager: an operation that fails leaves its range, and counts for nothing."""

    def __init__(self, watcher: Watcher, call: Call, seq: int, *, in_profiler: bool) -> None:
        self._watcher = watcher
        self._call = call
        self._seq = seq
        self._in_profiler = in_profiler
        self._range: AbstractContextManager[Any] | None = None
        self._phase = ""
        self._since_s = 0.0
        self._seconds = dict.fromkeys(_FIELD, 0.0)
        self._nbytes = self._padding_nbytes = self._second_rounds = 0

    def phase(self, phase: str) -> None:
        """The operation goes on to the next phase."""
        now_s = perf_counter()
        self._leave(now_s)
        self._phase, self._since_s = phase, now_s
        if self._in_profiler:
            from torch.profiler import record_function

            self._range = record_function(f"gather_core::{self._call.operation}/{phase}")
            self._range.__enter__()  # type: ignore[no-untyped-call]

    def sent(self, nbytes: int, frames: Frames, *, in_second_round: bool) -> None:
        """What this rank has sent: so many bytes, which carried these frames."""
        self._nbytes += nbytes
        self._padding_nbytes += max(nbytes - HEADER_NBYTES - sum(map(len, frames)), 0)
        self._second_rounds += in_second_round

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._leave(perf_counter())
        call, who = self._call, self._watcher.who
        tag = f" {call.tag!r}" if call.tag else ""
        if exc is not None:
            _log.debug("%s: %s #%d%s failed: %s", who, call.operation, self._seq, tag, type(exc).__name__)
            return
        times = ", ".join(f"{phase} {1e3 * seconds:.3f} ms" for phase, seconds in self._seconds.items() if seconds)
        _log.debug("%s: %s #%d%s sent %d bytes: %s", who, call.operation, self._seq, tag, self._nbytes, times)
        if self._watcher.stats.is_recording:
            self._add()

    def _leave(self, now_s: float) -> None:
        if self._phase:
            self._seconds[self._phase] += now_s - self._since_s
            self._phase = ""
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None

    def _add(self) -> None:
        entry = self._watcher.stats.of(self._call.operation, self._call.tag)
        entry.operations += 1
        entry.nbytes += self._nbytes
        entry.padding_nbytes += self._padding_nbytes
        entry.second_rounds += self._second_rounds
        for phase, name in _FIELD.items():
            setattr(entry, name, getattr(entry, name) + self._seconds[phase])


def _profiler_state() -> Callable[[], bool]:
    """What says whether torch's profiler is on; where torch has not been imported, it cannot be."""
    torch: Any = sys.modules.get("torch")
    autograd: Any = getattr(torch, "autograd", None)
    state: Callable[[], bool] = getattr(autograd, "_profiler_enabled", bool)
    return state
