"""What a forked child does with its parent's connections: nothing, not even at its end."""

import ctypes


def never_destroy(thing: object) -> None:
    """Keeps an object for as long as the process exists, longer than any module keeps what it holds.

    Destroying a process group waits for its threads, and freeing pinned memory asks CUDA; neither is there in a child.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
