"""Whether another process of this host still lives, by its pid and the moment at which it started."""

import os
import select
from dataclasses import dataclass

_ENDED = frozenset("ZXx")
"""A zombie has let go of everything but its exit status."""
_STOPPED = frozenset("Tt")


@dataclass(frozen=True)
class Birth:
    """What tells a process from a later one of the same pid."""

    pid: int
    started: int
    """In clock ticks since the host has booted."""


def own_birth() -> Birth:
    """Describes this process.

    Raises:
        OSError: There is no /proc.
    """
    pid = os.getpid()
    return Birth(pid, _read_stat(pid)[1])


class ProcessLife:
    """Looks at one process without waiting for it.

    By a pidfd, which needs no further descriptor at the moment of looking; where there is none, by pid and start time.
    """

    def __init__(self, birth: Birth) -> None:
        """Starts to watch; what has ended already is seen at once."""
        self._birth = birth
        self._pidfd = _open_pidfd(birth.pid)
        self._poll = select.poll()
        if self._pidfd >= 0:
            self._poll.register(self._pidfd, select.POLLIN)
        self._is_dead = _has_ended(birth)  # behind the pidfd, which so cannot be a later process's

    def is_dead(self) -> bool:
        """Whether it has ended; a process that is stopped has not."""
        if not self._is_dead:
            self._is_dead = bool(self._poll.poll(0)) if self._pidfd >= 0 else _has_ended(self._birth)
        return self._is_dead

    def is_stopped(self) -> bool:
        """Whether it is held by a signal or debugger."""
        try:
            return _read_stat(self._birth.pid)[0] in _STOPPED
        except OSError:
            return False

    def close(self) -> None:
        """Stops watching; idempotent."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # an old kernel, a sandbox, no descriptor left, or no such process
        return -1


def _has_ended(birth: Birth) -> bool:
    try:
        state, started = _read_stat(birth.pid)
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:  # such as no descriptor left: nothing is known
        return False
    return state in _ENDED or started != birth.started


def _read_stat(pid: int) -> tuple[str, int]:
    """Returns state and start time: fields 3 and 22 of proc_pid_stat(5); the second may hold blanks and brackets."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])
