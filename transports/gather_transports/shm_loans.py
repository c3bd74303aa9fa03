"""Areas of a rank's memory that are on loan: peers hand out what they read there as results, without a copy of it.

The borrower maps the area so that it can write without anybody's seeing it, and gives a token to the lender when nobody
refers to that memory any more; the lender writes there again when it has the tokens of all ranks. Each (lender, area)
has a semaphore of its own, which orders what borrowers have read before what the lender then writes.

A process that forks first copies what it has borrowed and returns it: else the child's results would change with the
next loan. (A fork that Python does not know of, by C code, shares them.)
"""

import errno
import itertools
import os
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from gather_transports.semaphores import SEMAPHORE_NBYTES, Semaphore, post, semaphore_at, try_wait
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
    """Gives a token when what it refers to is there no more, without a line of Python; see `shared_mapping`.

    That is an array, which the garbage collector does not track: else it would give it for what is part of a cycle
    before finalizers have looked there for the last time.
    """

    _as_parameter_ = 0

    def __new__(cls, array: Any, token: Semaphore, control: memoryview) -> "_Loan":
        return super().__new__(cls, array, partial(post, token))

    def __init__(self, array: Any, token: Semaphore, control: memoryview) -> None:
        self._token = token
        self._control = control
        """Where the token lies: stays mapped."""

    def give_token(self) -> None:
        """Gives it now, and not later."""
        token = Semaphore(self._token.value)
        self._token.value = _nowhere.value  # first: where this is interrupted, no token is better than two
        post(token)


_nowhere_memory = memoryview(bytearray(SEMAPHORE_NBYTES))
_nowhere = semaphore_at(_nowhere_memory, 0)
"""Where a token goes that has been given before."""
_loans: dict[int, _Loan] = {}
"""Those of this process, and some that have ended since, by a number that is never used again."""
_numbers = itertools.count()
_forking: dict[int, bool] = {}
"""The threads that fork: nothing is borrowed until they have."""
_TRIES = 100
"""More signals than ever come in the middle of one."""


def borrow(fd: int, nbytes: int, offset: int, token: Semaphore, control: memoryview) -> memoryview:
    """Returns bytes of a file that the lender does not change before it has the token: writable, and the caller's.

    Args:
        fd: The file, not needed afterwards.
        nbytes: How much of it; at least 1.
        offset: Where to begin, a multiple of the page size.
        token: Given once nobody refers to this memory any more.
        control: Where the token lies.

    Raises:
        OSError: The file is shorter, there is no address space, or another thread forks; the token is not given.
    """
    import numpy as np

    array = np.frombuffer(map_privately(fd, nbytes, offset), np.uint8)
    token = Semaphore(token.value)  # of this loan alone
    loan = _Loan(array, token, control)
    number = next(_numbers)
    _loans[number] = loan
    # Looked at behind the entry, as who forks looks at the entries behind this; and one of the two takes it out.
    if _forking and _loans.pop(number, None) is not None:
        token.value = _nowhere.value
        raise OSError(errno.EAGAIN, "a thread of this process forks")
    forget_ended(_loans)
    return array.data


def _return_all() -> None:
    """Makes all that is borrowed memory of this process alone, and says so to the lenders.

    Ends only then: two threads that fork at once both see to everything, and what a signal's handler raises comes
    later, to be reported by Python as ignored, as from any function that it calls before a fork.
    """
    _forking[threading.get_ident()] = True
    interrupt: BaseException | None = None
    for _ in range(_TRIES):
        try:
            for number, loan in list(_loans.items()):
                array = loan()
                if array is not None:
                    make_private(array.data)
                    if _loans.pop(number, None) is not None:
                        loan.give_token()
                del array
            break
        except BaseException as exc:
            interrupt = exc
    if interrupt is not None:
        raise interrupt


def _have_forked() -> None:
    _forking.pop(threading.get_ident(), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_return_all, after_in_parent=_have_forked, after_in_child=_forking.clear)
    # Twice, as a signal's handler may raise when one has only just begun.
    os.register_at_fork(before=_return_all)
