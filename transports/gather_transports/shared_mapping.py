"""Mapping files in memory, so that a mapping needs no descriptor and a forked child keeps nothing of what is shared.

Python's `mmap` keeps a duplicate of the descriptor for as long as the mapping lives: until nobody has a view of it.
"""

import ctypes
import errno
import itertools
import mmap
import os
import weakref
from collections.abc import MutableMapping
from functools import partial
from typing import Any, TypeAlias

from gather_transports.c_library import c_function, last_error

_map = c_function("mmap", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_unmap = c_function("munmap", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_advise = c_function("madvise", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value
_MAP_FIXED = 0x10
_MADV_POPULATE_WRITE = 23
_Memory: TypeAlias = "ctypes.Array[ctypes.c_ubyte]"


class _Mapping(weakref.ref[_Memory]):
    """Unmaps when what it refers to is there no more, without a line of Python.

    For Python drops what a signal's handler raises inside a finalizer: a Ctrl-C would be lost.
    """

    _as_parameter_ = 0
    """What ctypes makes of a reference that its callback gets: a third argument, which munmap does not look at."""

    def __new__(cls, memory: _Memory, address: int, is_shared: bool) -> "_Mapping":
        return super().__new__(cls, memory, partial(_unmap, address, len(memory)))

    def __init__(self, memory: _Memory, address: int, is_shared: bool) -> None:
        self.address = address
        self.nbytes = len(memory)
        self.is_shared = is_shared


_mappings: dict[int, _Mapping] = {}
"""Those of this process, and some that have ended since, by a number that is never used again."""
_numbers = itertools.count()


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
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    memory = _mapped(fd, nbytes, offset, protection, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    view = memoryview(memory).cast("B")
    return view if writable else view.toreadonly()


def map_privately(fd: int, nbytes: int, offset: int) -> memoryview:
    """As `map_file`, but what is written goes to a copy of its page, which nobody else sees.

    Pages that nobody has written show the file as it is: nobody may write there while this is in use, or has not gone
    through `make_private`. A page is mapped when it is looked at.

    Raises:
        OSError: The file is shorter, or there is no address space.
    """
    return memoryview(_mapped(fd, nbytes, offset, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE)).cast("B")


def make_private(view: memoryview) -> None:
    """Copies all pages of a private mapping that are not copied yet; the file may change then."""
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
    if _advise(address, len(view), _MADV_POPULATE_WRITE) != 0:  # as before Linux 5.14
        view[:: mmap.PAGESIZE] = memoryview(bytes(view[:: mmap.PAGESIZE]))


def _mapped(fd: int, nbytes: int, offset: int, protection: int, flags: int) -> _Memory:
    if os.fstat(fd).st_size < offset + nbytes:  # reading behind the end would be a SIGBUS
        raise OSError(errno.EINVAL, f"the file ends before byte {offset + nbytes}")
    address = _map(None, nbytes, protection, flags, fd, offset)
    if address == _FAILED:
        raise last_error()
    memory = (ctypes.c_ubyte * nbytes).from_address(address)
    mapping = _Mapping(memory, address, bool(flags & mmap.MAP_SHARED))
    _mappings[next(_numbers)] = mapping
    forget_ended(_mappings)
    return memory


def forget_ended(references: MutableMapping[int, Any]) -> None:
    """Drops weak references to what is there no more; callbacks cannot do it, as they run no Python."""
    for key in [key for key, reference in list(references.items()) if reference() is None]:
        references.pop(key, None)


def _replace_shared_in_child() -> None:
    """Puts private, empty memory in place of what is the parent's: the addresses stay taken, as views may be left."""
    flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    for mapping in list(_mappings.values()):
        where = mapping.address, mapping.nbytes
        if not mapping.is_shared or mapping() is None:  # then somebody else may have that address by now
            continue
        if _map(*where, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == _FAILED:
            _map(*where, mmap.PROT_READ, flags, -1, 0)  # which takes no memory, so is never refused


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_shared_in_child)
