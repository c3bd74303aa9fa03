"""Files in memory that have no name: how one is made, and how other processes of the same user get at it.

A process shows what it has opened below /proc/<pid>/fd, and whoever could trace it may open that. So nothing has to be
sent, no name exists at any time that could be left behind, and the kernel frees the memory with the last process.
"""

import ctypes
import errno
import os
import stat
from dataclasses import dataclass

from gather_core.errors import TransportError
from gather_transports.c_library import c_function, last_error

_MODE = 0o600
_MFD_NOEXEC_SEAL = 0x8
"""Since Linux 6.3, which asks every caller to say whether the file may be executed."""


_KEEP_SIZE, _PUNCH_HOLE = 1, 2
"""Modes of fallocate(2)."""
_fallocate = c_function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True)
class FileAddress:
    """Where other processes find the file."""

    pid: int
    fd: int
    device: int
    inode: int


def create_file(folder: str) -> int:
    """Returns the descriptor of a new, empty file, readable and writable by this user alone.

    Args:
        folder: A folder of the file system that is to hold it; "": memory that belongs to none, so that only the
            memory of the host, container or control group bounds it.

    Raises:
        OSError: It cannot be made.
    """
    fd = _create_in(folder) if folder else _create_memfd()
    try:
        os.fchmod(fd, _MODE)
        if not folder:
            _forbid_truncation(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _forbid_truncation(fd: int) -> None:
    """Else whoever reads behind the new end would be killed."""
    import fcntl  # here, as not every system has it, and all ask `unavailable`

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def _create_in(folder: str) -> int:
    return os.open(folder, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _MODE)  # O_EXCL: never to be linked


def _create_memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("gather-core", flags | _MFD_NOEXEC_SEAL)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return os.memfd_create("gather-core", flags)


def punch_hole(fd: int, start: int, nbytes: int) -> None:
    """Gives the memory of these bytes back; the file stays as long as it is, and they read as zeros.

    Not by `madvise`, which refuses memory that is locked (mlockall(2), as jobs with RDMA do).

    Raises:
        OSError: This file system has no holes, or the C library no `fallocate`.
    """
    if _fallocate is None:
        raise OSError(errno.ENOSYS, "no fallocate")
    if _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, start, nbytes) != 0:
        raise last_error()


def address_of(fd: int) -> FileAddress:
    """Says where others find an open file of this process; valid until the descriptor is closed."""
    status = os.fstat(fd)
    return FileAddress(os.getpid(), fd, status.st_dev, status.st_ino)


def attach_file(address: FileAddress, *, writable: bool) -> int:
    """Returns a descriptor of another process's file.

    Raises:
        TransportError: It cannot be opened, or is not the file that was announced, or others than this user may use it.
    """
    path = f"/proc/{address.pid}/fd/{address.fd}"
    try:
        _check(os.stat(path), address)  # before it is opened: another thing's opening may block, or do something
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as exc:
        raise TransportError(f"its memory cannot be opened at {path}: {exc.strerror}") from exc
    try:
        _check(os.fstat(fd), address)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(status: os.stat_result, address: FileAddress) -> None:
    if (status.st_dev, status.st_ino) != (address.device, address.inode) or not stat.S_ISREG(status.st_mode):
        raise TransportError(f"descriptor {address.fd} of process {address.pid} is not the memory that was announced")
    if status.st_uid != os.geteuid():
        raise TransportError(f"its memory belongs to user {status.st_uid}, not to {os.geteuid()} who runs this rank")
    if stat.S_IMODE(status.st_mode) != _MODE:
        raise TransportError(f"its memory has mode {stat.S_IMODE(status.st_mode):04o} instead of {_MODE:04o}")
