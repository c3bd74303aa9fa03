"""Cases that go wrong on purpose: the runner must find what each of them does."""

import os
import tempfile
import threading
import time
from pathlib import Path

from faults.case import AT_ONCE_S, Case
from faults.scene import Scene
from gather_core import GatherError

NAMES = ("planted-by-faults", "sem.planted-by-faults")
"""Of what is left in shared memory."""

_end = threading.Event()


def _hangs(scene: Scene) -> None:
    if scene.is_victim:
        threading.Event().wait()


def _leaves_everything(scene: Scene) -> None:
    if scene.rank == 0:
        threading.Thread(target=_end.wait, args=(20,), daemon=True).start()
        os.dup(0)
        os.close(tempfile.mkstemp(prefix="planted-")[0])
        for name in NAMES:
            os.close(os.open(f"/dev/shm/{name}", os.O_CREAT | os.O_RDWR, 0o600))


def _raises(scene: Scene) -> None:
    raise GatherError("rank 0 did it")


def _says_nothing(scene: Scene) -> None:
    scene.ready()


def _is_late(scene: Scene) -> None:
    scene.fault()
    time.sleep(0.5)


PLANTED = [
    (
        Case(1, "leaves everything", _leaves_everything, (), "none"),
        [
            "left behind: threads",
            "left behind: descriptors",
            "left behind: files planted-",
            f"left behind: shared_memory {NAMES[0]}",
            f"left behind: semaphores {NAMES[1]}",
        ],
    ),
    (Case(1, "hangs", _hangs, (), "none"), ["hangs: "]),  # whose process is killed, with what the one before has left
    (Case(1, "raises another error", _raises, ("AbortedError",), "none"), ["GatherError instead of AbortedError"]),
    (Case(1, "names another rank", _raises, ("GatherError",), "none"), ["names [0] and not [1]"]),
    (
        Case(1, "raises nothing", _says_nothing, ("AbortedError",)),
        ["nothing instead of AbortedError", "afterwards: goes on instead of broken"],
    ),
    (Case(1, "kills nobody", _says_nothing, (), "goes on", dies=(1,)), ["ranks [] ended, and not [1]"]),
    (Case(1, "is late", _is_late, (), "none", waits_s=0.1 - AT_ONCE_S), ["s instead of 0.1 s"]),
]
"""With what the runner must say."""


def clean_up(temporary: Path) -> None:
    """Removes what has a name; the rest ends with its process."""
    for name in NAMES:
        Path("/dev/shm", name).unlink(missing_ok=True)
    for path in temporary.glob("planted-*"):
        path.unlink()
