"""Keys that collide: a dict or set compares each of them with many before it, so that many take for ever."""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from gather_core.errors import DecodeError

MAX_SAME_HASH = 256
"""More keys of one hash make a dict or set slow to build, as each is compared with all before it."""
_CHUNK = 4096
_LEAST_BUDGET_S = 1.0
_BUDGET_S_PER_KEY = 20e-6
"""Some 200 times what a key takes that does not collide."""


class LookAgainError(Exception):
    """What was done at once must be done again with care: with a look at each key, each string, each container."""


class HashWatch:
    """Counts different objects of one hash, in constant time for each.

    Whether they are keys is not known where they are seen. Only ints beyond 64 bits and what travels as extensions can
    share a hash by design.
    """

    def __init__(self) -> None:
        self._first: dict[int, Any] = {}
        self._crowds: dict[int, set[Any]] = {}

    def see(self, obj: Any) -> None:
        """Counts an object, unless it cannot be a key.

        Raises:
            LookAgainError: There are too many of its hash, or comparing it failed.
        """
        try:
            code = hash(obj)
        except Exception:  # whatever a class of the user's raises
            return
        first = self._first.setdefault(code, obj)
        if first is not obj:
            self._see_another(code, first, obj)

    def _see_another(self, code: int, first: Any, obj: Any) -> None:
        try:
            crowd = self._crowds.setdefault(code, {first})
            crowd.add(obj)
        except Exception as exc:  # a comparison of the user's
            raise LookAgainError from exc
        if len(crowd) > MAX_SAME_HASH:
            raise LookAgainError


def is_crowded(keys: Collection[Any]) -> bool:
    """Whether too many keys share a hash."""
    return len(keys) > MAX_SAME_HASH and max(Counter(map(hash, keys)).values()) > MAX_SAME_HASH


def in_time(keys: Sequence[Any]) -> Iterator[slice]:
    """Chunks in which a dict or set is to be built of keys whose hashes the sender may have chosen.

    Numbers of different hashes can be made to collide too, as each is looked for in a series of places that its hash
    decides. That cannot be seen but by what it takes.

    Raises:
        DecodeError: Too many share a hash, or those before took much longer than keys do.
    """
    if is_crowded(keys):
        raise DecodeError(f"of {len(keys)} keys or items, too many share a hash")
    ends_s = time.thread_time() + _LEAST_BUDGET_S + _BUDGET_S_PER_KEY * len(keys)
    for start in range(0, len(keys), _CHUNK):
        if time.thread_time() > ends_s:
            raise DecodeError(f"{len(keys)} keys or items that collide")
        yield slice(start, start + _CHUNK)
