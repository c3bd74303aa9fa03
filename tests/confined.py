"""Runs functions where hostile input can do no harm: in a process with a memory limit, within a deadline.

The functions must be importable by name in another process: from a module in tests/ or from what is installed, not
from a test module.
"""

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from confined_worker import Report, Task

_MIB = 1 << 20
_START_WITHIN_S = 120.0
_STOP_WITHIN_S = 5.0
_MODULES = ("numpy", "torch", "gather_codecs.messagepack", "gather_codecs.zstandard_frames", "hostile")


@dataclass(frozen=True)
class Outcome:
    """What became of a call."""

    value: Any = None
    error: BaseException | None = None
    """What it raised, with its chain of `__cause__`."""
    exitcode: int | None = None
    """Set where the process died: the negative signal, or what it exited with."""
    is_late: bool = False
    """Whether it took longer than it had, and was killed."""
    seconds: float = 0.0

    def result(self) -> Any:
        """The value; raises what the call raised.

        Raises:
            AssertionError: It was late, or the process died.
        """
        if self.is_late:
            raise AssertionError(f"not finished after {self.seconds:.1f} s")
        if self.exitcode is not None:
            raise AssertionError(f"the process died with exit code {self.exitcode}")
        if self.error is not None:
            raise self.error
        return self.value


class Confined:
    """One process for many calls, started at the first one and again after it has died.

    Args:
        modules: What is imported before memory is measured.
    """

    def __init__(self, modules: Sequence[str] = _MODULES) -> None:
        self._modules = list(modules)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Confined":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def call(
        self, function: Callable[..., Any], *args: Any, more_nbytes: int = 64 * _MIB, within_s: float = 60
    ) -> Outcome:
        """Runs `function(*args)` there.

        Args:
            function: Importable by name.
            args: Pickled on their way, as the result is on its way back.
            more_nbytes: Memory that it may take beyond what the process has, in bytes.
            within_s: Seconds after which the process is killed.
        """
        task = Task(pickle.dumps((function, args)), more_nbytes)
        connection = self._start() if self._connection is None else self._connection
        started = time.monotonic()
        try:
            connection.send_bytes(pickle.dumps(task))
            if not connection.poll(within_s):
                self._kill()
                return Outcome(is_late=True, seconds=time.monotonic() - started)
            report: Report = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return Outcome(exitcode=self._kill(), seconds=time.monotonic() - started)
        error = None if report.error is None else report.error.load()
        return Outcome(report.value, error, seconds=time.monotonic() - started)

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is None or self._connection is None:
            return
        self._connection.close()
        try:
            self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        serve = f"import confined_worker; confined_worker.serve({theirs.fileno()}, {self._modules!r})"
        self._process = subprocess.Popen([sys.executable, "-c", serve], env=_environment(), pass_fds=[theirs.fileno()])
        theirs.close()
        self._connection = connection = Connection(ours.detach())
        try:
            if not connection.poll(_START_WITHIN_S):
                raise RuntimeError(f"the confined process was not ready within {_START_WITHIN_S:.0f} s")
            connection.recv_bytes()
        except (EOFError, RuntimeError) as exc:
            raise RuntimeError(f"the confined process ended with {self._kill()} before it was ready") from exc
        return connection

    def _kill(self) -> int:
        """Ends the process, which may have ended already; returns how it ended."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            raise RuntimeError("there is no process")
        connection.close()
        process.kill()  # no effect on how it ended where it has
        return process.wait()


def _environment() -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # what can be imported here can be imported there
        "MALLOC_ARENA_MAX": "1",  # each arena takes address space
        "MALLOC_MMAP_THRESHOLD_": "131072",  # memory that one call gave back is not there for the next
    }
