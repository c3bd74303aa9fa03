"""Areas of a rank's memory that are on loan: peers hand out what they read there as results, without a copy of it.

The borrower maps the area so that it can write without anybody's seeing it, and gives a token to the lender when nobody
refers to that memory any more; the lender writes there again when it has the tokens of all ranks. Each (lender, area)
has a semaphore of its own, which orders what borrowers have read before what the lender then writes.

A process that forks first copies what it has borrowed and returns it: else the child's results would change with the
next loan.
"""

import os
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from gather_transports.semaphores import Semaphore, post, try_wait
from gather_transports.shared_mapping import forget_ended, make_private, map_privately


class Lender:
    """What this rank has lent of its areas.

    Args:
        tokens: What borrowers give back, one semaphore per area.
        num_borrowers: How many give a token back for each loan.
    """

    def __init__(self, tokens: Sequence[Semaphore], num_borrowers: int) -> None:
        self._tokens = tokens
        self._num_borrowers = num_borrowers
        self._not_returned = [0] * len(tokens)

    def lend(self, area: int) -> None:
        """Lends an area that is not lent."""
        self._not_returned[area] = self._num_borrowers

    def is_lent(self, area: int) -> bool:
        """Whether anybody may still read the area."""
        while self._not_returned[area] and try_wait(self._tokens[area]) == 0:
            self._not_returned[area] -= 1
        return self._not_returned[area] > 0


class _Loan(weakref.ref[Any]):
    """Returns what it refers to when that is there no more, without a line of Python; see `shared_mapping`.

    That is an array, which the garbage collector does not track: else it would return what is part of a cycle before
    finalizers have looked at it for the last time.
    """

    _as_parameter_ = 0

    def __new__(cls, array: Any, token: Semaphore, control: memoryview) -> "_Loan":
        return super().__new__(cls, array, partial(post, token))

    def __init__(self, array: Any, token: Semaphore, control: memoryview) -> None:
        self.token = token
        self._control = control
        """Where the token lies: stays mapped."""


_loans: dict[int, _Loan] = {}
"""Those of this process, and some that have been returned since, by their `id`."""


def borrow(fd: int, nbytes: int, offset: int, token: Semaphore, control: memoryview) -> memoryview:
    """Returns bytes of a file that the lender does not change before it has the token: writable, and the caller's.

    Args:
        fd: The file, not needed afterwards.
        nbytes: How much of it; at least 1.
        offset: Where to begin, a multiple of the page size.
        token: Given once nobody refers to this memory any more.
        control: Where the token lies.

    Raises:
        OSError: The file is shorter, or there is no address space; the token is not given.
    """
    import numpy as np

    array = np.frombuffer(map_privately(fd, nbytes, offset), np.uint8)
    loan = _Loan(array, token, control)
    _loans[id(loan)] = loan
    forget_ended(_loans)
    return array.data


def _keep_all(*, is_child: bool) -> None:
    """Makes all that is borrowed memory of this process alone."""
    while _loans:
        try:
            _, loan = _loans.popitem()
        except KeyError:  # another thread has come first
            return
        array, token = loan(), loan.token
        if array is None:
            continue
        make_private(array.data)
        del loan  # before `array`, so that the token is given once
        if not is_child:
            post(token)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=partial(_keep_all, is_child=False),
        after_in_child=partial(_keep_all, is_child=True),  # what another thread has borrowed in between
    )
