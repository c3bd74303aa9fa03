"""Allocating the memory of a file in steps, between which ranks that grow at once see what the others have taken."""

import errno
import logging
import os
from collections.abc import Callable

from gather_core.available_memory import available_nbytes
from gather_core.errors import TransportError
from gather_transports.owned_descriptor import Descriptor
from gather_transports.shared_file import punch_hole

_log = logging.getLogger("gather_core")

_STEP_NBYTES = 16 << 20
"""Some milliseconds' worth."""
_LOOK_FROM_NBYTES = 1 << 20
"""Looking for what is available takes about as long as allocating this much."""


class Allocator:
    """Allocates memory of one file.

    What is available is looked for before each step, as each rank's look would else show room that all of them then
    take. Looking and taking are two things still, so each step leaves room for one of every other rank.

    Args:
        file: A file in memory.
        num_ranks: How many ranks may allocate at the same time.
        check_interrupt: Called between steps; may raise.
    """

    def __init__(self, file: Descriptor, num_ranks: int, check_interrupt: Callable[[], None]) -> None:
        self._file = file
        self._num_ranks = num_ranks
        self._check_interrupt = check_interrupt

    def allocate(self, start: int, nbytes: int) -> None:
        """Allocates bytes of the file that are a hole so far; all or none.

        Raises:
            OSError: There is not that much.
            TransportError: The file has been closed by another thread.
            BaseException: What `check_interrupt` raises, or a signal's handler.
        """
        try:
            for done in range(0, nbytes, _STEP_NBYTES):
                if done:
                    self._check_interrupt()
                if nbytes >= _LOOK_FROM_NBYTES:
                    self._check_room(nbytes - done)
                with self._file as fd:
                    os.posix_fallocate(fd, start + done, min(_STEP_NBYTES, nbytes - done))
        except BaseException:
            self.give_back(start, nbytes)
            raise

    def give_back(self, start: int, nbytes: int) -> bool:
        """Makes a hole of bytes of the file again; returns whether that could be done, and logs why not."""
        try:
            with self._file as fd:
                punch_hole(fd, start, nbytes)
        except TransportError:  # closed: it goes with the last who has the file
            return False
        except OSError as exc:
            _log.warning("%d bytes of shared memory are kept until the end: %s", nbytes, exc.strerror or exc)
            return False
        return True

    def _check_room(self, nbytes: int) -> None:
        available = available_nbytes()
        if available is None:
            return
        for_others = (self._num_ranks - 1) * min(nbytes, _STEP_NBYTES)
        if nbytes + for_others > available:
            text = f"{nbytes} more are needed, {available} are available"
            if nbytes <= available:
                text += f", of which {for_others} are left to the other ranks"
            raise OSError(errno.ENOSPC, text)
