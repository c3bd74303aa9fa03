"""How the ranks of a Gloo group find each other: over the Gatherer's own store, and without blocking anybody.

Gloo's constructor waits for its peers' addresses in C++, on whatever store it is given. On the job's own client that
wait would hold up every other call of this process, aborts included, and nothing could end it. So it gets a store
written in Python, which C++ calls back: its waits are many short looks, and end when this rank gives up.
"""

import threading
from collections.abc import Sequence
from datetime import timedelta
from time import sleep
from typing import Any

from torch._C._distributed_c10d import Store as TorchStore

from gather_core.deadline import Deadline
from gather_core.transport import GroupContext, Store

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05
_CALLED = "called"


class RendezvousStore(TorchStore):
    """What Gloo writes its address to and reads its peers' from."""

    def __init__(self, store: Store, deadline: Deadline) -> None:
        super().__init__()
        self._store = store
        self._deadline = deadline
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Ends all waits, with an error; from any thread."""
        self._given_up.set()

    def check_wanted(self) -> None:
        """Raises where this rank has given up, and has tidied up behind it."""
        if self._given_up.is_set():
            raise RuntimeError("this rank has given up")

    def set(self, key: str, value: Any) -> None:
        """Sets a key."""
        self.check_wanted()
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        """Returns a key's value, once it is there."""
        self.wait([key])
        return self._store.get(key)

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return self._store.check(keys)

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter."""
        return self._store.add(key, amount)

    def delete_key(self, key: str) -> bool:
        """Deletes a key."""
        return self._store.delete_key(key)

    def has_extended_api(self) -> bool:
        """Tells Gloo that there is no more than this."""
        return False

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Waits until all keys are there, this rank gives up, or the time of the whole rendezvous has passed."""
        pause_s = _FIRST_PAUSE_S
        while not self.check(keys):
            if self._given_up.wait(pause_s) or self._deadline.passed():
                raise RuntimeError(f"gave up waiting for {keys}")
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)


class RollCall:
    """Who is there to connect, and still there where that fails: Gloo waits for a rank that has died, and names none.

    A rank announces itself when it begins, and when it has connected. Where it has failed, it calls all that have not:
    those that still try answer, as long as they live, and those that fail too have called themselves.
    """

    def __init__(self, context: GroupContext) -> None:
        self._store = context.store
        self._rank = context.rank
        self._everyone = range(context.world_size)
        self._has_answered = False

    def announce(self) -> None:
        """Says that this rank has come to connect."""
        self._say("here")

    def answer(self) -> None:
        """Says that this rank is still there, if one has called; for use now and then while it tries."""
        if not self._has_answered and self._store.check([_CALLED]):
            self.here_still()

    def here_still(self) -> None:
        """Says so to whoever calls from now on."""
        self._say("here still")
        self._has_answered = True

    def missing(self) -> list[int]:
        """Returns the ranks that have not come so far."""
        return self._silent("here", self._everyone)

    def fallen_silent(self, within_s: float) -> list[int]:
        """Calls the ranks that have come so far; returns those that do not answer within that time."""
        self.here_still()
        missing = self.missing()
        came = [rank for rank in self._everyone if rank not in missing]
        self._store.set(_CALLED, "")
        deadline = Deadline(within_s)
        silent = self._silent("here still", came)
        while silent and not deadline.passed():
            sleep(min(_LONGEST_PAUSE_S, deadline.remaining_s()))
            silent = self._silent("here still", silent)
        return silent

    def _say(self, word: str) -> None:
        self._store.set(f"{word}/{self._rank}", "")

    def _silent(self, word: str, ranks: Sequence[int]) -> list[int]:
        keys = [f"{word}/{rank}" for rank in ranks]
        if self._store.check(keys):  # in one go, as all ranks of a large job may ask at once
            return []
        return [rank for rank, key in zip(ranks, keys, strict=True) if not self._store.check([key])]
