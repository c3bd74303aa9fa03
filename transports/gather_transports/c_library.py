"""The C library of this process, by ctypes: what Python does not offer of it, or not without a price."""

import ctypes
import os
from typing import Any


def c_library(kind: type[ctypes.CDLL]) -> Any:
    """Returns the C library; None on a system on which a process's own symbols cannot be looked up, such as Windows."""
    try:
        return kind(None, use_errno=True)
    except (OSError, TypeError):
        return None


_library = c_library(ctypes.CDLL)


def c_function(name: str, restype: Any, *argtypes: Any) -> Any:
    """Returns a function that lets other threads run, or None where there is none.

    Where the library has a variant of it whose offsets have 64 bits on every system, that one: `name` and "64".
    """
    function = getattr(_library, f"{name}64", None) or getattr(_library, name, None)
    if function is not None:
        function.restype = restype
        function.argtypes = argtypes
    return function


def last_error() -> OSError:
    """Why a function of `c_function` has just failed, on this thread."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def c_library_name() -> str:
    """What a `sem_t` and the like are laid out by."""
    try:
        return str(os.confstr("CS_GNU_LIBC_VERSION")).partition(" ")[0]
    except (AttributeError, ValueError, OSError):
        return "another C library"
