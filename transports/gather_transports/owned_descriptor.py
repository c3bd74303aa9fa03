"""Descriptors that one thread may give up while another still uses them."""

import os
import threading

from gather_core.errors import TransportError


class Descriptor:
    """An open file that is closed once it is given up and nobody uses it any more.

    Else a call between looking up the number and using it would find whatever has been opened under it since: it might
    allocate memory in somebody's file. `with descriptor as fd` uses the file; forked children close it at once.
    """

    def __init__(self, fd: int) -> None:
        """Takes over an open descriptor."""
        self._fd = fd
        self._num_users = 0
        self._is_given_up = False
        self._lock = threading.RLock()  # a signal's handler may close what it has interrupted
        _open[fd] = self

    def __enter__(self) -> int:
        """Returns the number, which stays this file's until `__exit__`.

        Raises:
            TransportError: It has been given up.
        """
        with self._lock:
            self._num_users += 1
            if self._is_given_up:  # looked at behind the count: whoever gives it up from here on leaves it open
                self.__exit__()
                raise TransportError("the transport is closed")
            return self._fd

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_users -= 1
            if self._is_given_up:
                self._close_unused()

    def close(self) -> None:
        """Gives it up; idempotent, waits for nobody."""
        with self._lock:
            self._is_given_up = True
            self._close_unused()

    def _close_unused(self) -> None:
        if self._num_users == 0 and self._fd >= 0:
            fd, self._fd = self._fd, -1
            _open.pop(fd, None)
            os.close(fd)

    def _close_in_child(self) -> None:
        """Closes it whoever used it: no other thread is left, nor will one release the lock."""
        self._lock = threading.RLock()
        self._is_given_up = True
        self._num_users = 0
        self._close_unused()


_open: dict[int, Descriptor] = {}


def _close_all_in_child() -> None:
    for descriptor in list(_open.values()):
        descriptor._close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all_in_child)
