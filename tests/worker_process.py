"""The test's end of one worker process of a RankPool: how it starts, ends, and shows where it hangs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from rank_worker import stacks_file

_START_WITHIN_S = 120.0
_STOP_WITHIN_S = 5.0
_STACK_WITHIN_S = 2.0


class WorkerProcess:
    """A process that runs `rank_worker.serve` at the other end of a connection.

    Args:
        scratch: Folder for its files; bodies have their temporary files in `tmp` under it.
    """

    def __init__(self, scratch: Path) -> None:
        ours, theirs = socket.socketpair()
        serve = f"import rank_worker; rank_worker.serve({theirs.fileno()}, {str(scratch)!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", serve], env=environment(scratch), pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self._stacks = stacks_file(scratch, self.process.pid)
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Waits for its imports, so that no body's timeout has to cover them.

        Raises:
            RuntimeError: It is not ready in time, or has ended.
        """
        if self._is_ready:
            return
        if not self.connection.poll(_START_WITHIN_S):
            raise RuntimeError(f"a rank's process was not ready within {_START_WITHIN_S:.0f} s")
        try:
            self.connection.recv()
        except EOFError:
            raise RuntimeError(f"a rank's process ended with {self.process.wait()} before it was ready") from None
        self._is_ready = True

    def stop(self) -> None:
        """Ends the process, whose connection is closed already, gently if it can."""
        try:
            self.process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends the process, whatever it does, and closes the connection."""
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def interrupt(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        self.process.send_signal(number)

    def stack(self) -> str:
        """The stacks of the process's threads."""
        self.interrupt(signal.SIGUSR1)
        deadline = time.monotonic() + _STACK_WITHIN_S
        text, previous = "", None
        while time.monotonic() < deadline and not (text and text == previous):
            time.sleep(0.05)
            text, previous = self._stacks.read_text(), text
        return text or f"(no stack within {_STACK_WITHIN_S:.0f} s: the process is stopped)"


def end_processes_of(scratch: Path, within_s: float = 3) -> list[str]:
    """Kills what outlived its worker, forked or spawned by it: its environment names the scratch folder (Linux)."""
    deadline = time.monotonic() + within_s  # a resource tracker ends a little after its process
    while (pids := processes_of(scratch)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while processes_of(scratch) and time.monotonic() < deadline + within_s:
        time.sleep(0.01)  # a killed process is there for a moment
    return [f"process {pid}" for pid in sorted(pids)]


def processes_of(scratch: Path) -> set[int]:
    """The processes whose environment names the scratch folder (Linux)."""
    pids = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # has ended, or is another user's
            if os.fsencode(scratch) in environ.read_bytes():
                pids.add(int(environ.parent.name))
    return pids


def environment(scratch: Path) -> dict[str, str]:
    """Of processes whose temporary files belong in the scratch folder."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # what can be imported here can be imported there
        "RES_OPTIONS": "timeout:1 attempts:1",  # a connecting TCPStore asks DNS, and waits 5 s where none answers
        "TMPDIR": str(scratch / "tmp"),
    }
