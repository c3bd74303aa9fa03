"""One worker: `python -m gather_bench.demo.worker FOLDER PARENT_PID`, started by torch's elastic launcher."""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Works; an error of the Gatherer says what happened without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler waits for a collective to return
    _die_with_parent(int(sys.argv[2]))
    from gather_bench.demo.job import JobFolder
    from gather_bench.demo.run import run
    from gather_core import GatherError

    try:
        run(JobFolder(Path(sys.argv[1])))
    except GatherError as exc:
        sys.exit(f"{type(exc).__name__}: {exc}")


def _die_with_parent(pid: int) -> None:
    """Linux kills this process when the launcher is gone, whatever way that went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != pid:  # it was gone before
            sys.exit(1)


if __name__ == "__main__":
    main()
