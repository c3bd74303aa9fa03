"""Waiting for a token without sleeping, as long as that is worth it: who sleeps is woken late, and on cold caches.

Between two looks the other processes of this CPU may run, so spinning also pays where ranks share CPUs: it takes turns
with the ranks that it waits for, for less than sleeping and waking cost. Where it is in vain it soon ends.
"""

from time import perf_counter

from gather_transports.c_library import c_function
from gather_transports.semaphores import Semaphore, try_wait

_LONGEST_S = 500e-6
"""Of one wait: some turns of a few ranks on one CPU."""
_SHORTEST_S = 20e-6
_TURN_S = 2e-3
"""Who keeps the CPU for longer is no rank in the middle of an exchange but other work, which would always do so."""
_TRY_AGAIN_AFTER, _TRY_AGAIN_AT_LAST = 16, 1024
"""Waits, after which spinning is given another chance where it has been in vain: twice as many each time, eight times
as many where other work keeps the CPU."""

_LOOKS = range(20)
"""Before the first turn of others: 3 us, in which ranks with a CPU each mostly come."""

let_others_run = c_function("sched_yield", None)
"""Also the other threads of this process, unlike `os.sched_yield` before Python 3.13."""


class Spinner:
    """How long one rank spins, by what has come of it so far."""

    def __init__(self) -> None:
        self._longest_s = _LONGEST_S
        self._num_waits = 0
        self._next_try = self._pause = _TRY_AGAIN_AFTER

    def take(self, token: Semaphore) -> bool:
        """Returns whether it has taken the token."""
        for _ in _LOOKS:
            if try_wait(token) == 0:
                return True
        self._num_waits += 1
        is_try = self._num_waits >= self._next_try
        longest_s = _LONGEST_S if is_try else self._longest_s
        if not longest_s:
            return False
        until = perf_counter() + longest_s
        while try_wait(token) != 0:
            now = perf_counter()
            if now >= until:
                self._was_in_vain(self._longest_s / 2)
                if is_try:
                    self._try_again_after(2 * self._pause)
                return False
            let_others_run()
            if perf_counter() - now > _TURN_S:
                self._was_in_vain(0)
                self._try_again_after(8 * self._pause)
                return bool(try_wait(token) == 0)
        self._longest_s = _LONGEST_S
        self._try_again_after(_TRY_AGAIN_AFTER)
        return True

    def _was_in_vain(self, longest_s: float) -> None:
        self._longest_s = longest_s if longest_s >= _SHORTEST_S else 0

    def _try_again_after(self, num_waits: int) -> None:
        self._pause = min(num_waits, _TRY_AGAIN_AT_LAST)
        self._next_try = self._num_waits + self._pause
