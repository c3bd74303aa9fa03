"""Deadlines: how much time an operation has left, and which timeouts a user may give."""

from datetime import timedelta
from time import monotonic

from gather_core.errors import SettingsError

POLL_S = 0.25
"""Longest time that a wait goes without looking for Ctrl-C and for other ranks' aborts, in seconds."""
LONGEST_S = 1e9
"""About 30 years: what every clock and library below can still add up."""


class Deadline:
    """An absolute point in time, moved only by visible progress."""

    __slots__ = ("_at", "timeout_s")

    def __init__(self, timeout_s: float, started_s: float | None = None) -> None:
        """Starts at a reading of `time.monotonic`; now, where none is given."""
        self.timeout_s = timeout_s
        self._at = (monotonic() if started_s is None else started_s) + timeout_s

    def remaining_s(self) -> float:
        """Seconds left; never less than a millisecond, so that it can be given to a wait."""
        return max(self._at - monotonic(), 0.001)

    def passed(self) -> bool:
        """Whether there is no time left."""
        return monotonic() >= self._at

    def renew(self) -> None:
        """Starts anew: a chunk has arrived."""
        self._at = monotonic() + self.timeout_s


def seconds(timeout: object, name: str = "timeout_s") -> float:
    """Reads a user's timeout: seconds or a timedelta, greater than 0 and at most 1e9 s.

    Raises:
        SettingsError: Anything else.
    """
    value = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST_S:
        raise SettingsError(f"{name} must be seconds or a timedelta, greater than 0 and at most 1e9, not {timeout!r}")
    return float(value)
