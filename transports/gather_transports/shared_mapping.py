"""Mapping files in memory, so that a mapping needs no descriptor and a forked child keeps nothing of it.

Python's `mmap` keeps a duplicate of the descriptor for as long as the mapping lives: until nobody has a view of it.
"""

import ctypes
import errno
import mmap
import os
import weakref
from functools import partial

from gather_transports.c_library import c_function, last_error

_map = c_function("mmap", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_unmap = c_function("munmap", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value
_MAP_FIXED = 0x10


class _Mapping(weakref.ref[ctypes.Array[ctypes.c_ubyte]]):
    """Unmaps when what it refers to is there no more, without a line of Python.

    For Python drops what a signal's handler raises inside a finalizer: a Ctrl-C would be lost.
    """

    _as_parameter_ = 0
    """What ctypes makes of a reference that its callback gets: a third argument, which munmap does not look at."""

    def __new__(cls, memory: ctypes.Array[ctypes.c_ubyte], address: int, nbytes: int) -> "_Mapping":
        return super().__new__(cls, memory, partial(_unmap, address, nbytes))

    def __init__(self, memory: ctypes.Array[ctypes.c_ubyte], address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes


_mappings: dict[int, _Mapping] = {}
"""Those of this process, and some that have ended since, by their `id`."""


def map_file(fd: int, nbytes: int, offset: int = 0, *, writable: bool) -> memoryview:
    """Returns bytes of a file that cannot be truncated; unmapped once nobody has a view of them.

    Args:
        fd: The file, not needed afterwards.
        nbytes: How much of it; at least 1.
        offset: Where to begin, a multiple of the page size.
        writable: Whether it may be written into, and the file with it.

    Raises:
        OSError: The file is shorter, or there is no address space.
    """
    if os.fstat(fd).st_size < offset + nbytes:  # reading behind the end would be a SIGBUS
        raise OSError(errno.EINVAL, f"the file ends before byte {offset + nbytes}")
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _map(None, nbytes, protection, mmap.MAP_SHARED | mmap.MAP_POPULATE, fd, offset)
    if address == _FAILED:
        raise last_error()
    memory = (ctypes.c_ubyte * nbytes).from_address(address)
    mapping = _Mapping(memory, address, nbytes)
    _mappings[id(mapping)] = mapping
    for key in [key for key, other in list(_mappings.items()) if other() is None]:
        _mappings.pop(key, None)
    view = memoryview(memory).cast("B")
    return view if writable else view.toreadonly()


def _replace_all_in_child() -> None:
    """Puts private, empty memory in place of what is the parent's: the addresses stay taken, as views may be left."""
    flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    for mapping in list(_mappings.values()):
        where = mapping.address, mapping.nbytes
        if mapping() is None:  # somebody else may have that address by now
            continue
        if _map(*where, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == _FAILED:
            _map(*where, mmap.PROT_READ, flags, -1, 0)  # which takes no memory, so is never refused


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_all_in_child)
