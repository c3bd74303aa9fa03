"""Whether another process of this host still lives, by its pid and the moment at which it started."""

import os
import select
from dataclasses import dataclass

from gather_core.errors import TransportError
from gather_transports.owned_descriptor import Descriptor

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
    Threads may share it.
    """

    def __init__(self, birth: Birth) -> None:
        """Starts to watch whoever has that pid now.

        Whether that is the process that is meant, its start time cannot say where time namespaces differ. Who looks at
        something that only the process itself has, as its memory is, knows it, if that is done after this.
        """
        self._birth = birth
        self._pidfd = _open_pidfd(birth.pid)
        self._is_dead = False

    def is_dead(self) -> bool:
        """Whether it has ended; a process that is stopped has not."""
        if not self._is_dead:
            self._is_dead = _has_ended(self._birth) if self._pidfd is None else _is_readable(self._pidfd)
        return self._is_dead

    def is_stopped(self) -> bool:
        """Whether it is held by a signal or debugger."""
        try:
            return _read_stat(self._birth.pid)[0] in _STOPPED
        except OSError:
            return False

    def close(self) -> None:
        """Stops watching: what has not been seen to end is alive from now on; idempotent."""
        if self._pidfd is not None:
            self._pidfd.close()


def _open_pidfd(pid: int) -> Descriptor | None:
    try:
        return Descriptor(os.pidfd_open(pid))
    except (AttributeError, OSError):  # an old kernel, a sandbox, no descriptor left, or no such process
        return None


def _is_readable(descriptor: Descriptor) -> bool:
    looking = select.poll()  # one for each look: two threads cannot poll one
    try:
        with descriptor as fd:
            looking.register(fd, select.POLLIN)
            return bool(looking.poll(0))
    except TransportError:  # given up
        return False


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
