"""Keys of one hash: a dict or set compares each of them with all before it, so that many take for ever."""

from collections import Counter
from collections.abc import Collection
from typing import Any

MAX_SAME_HASH = 256
"""More keys of one hash make a dict or set slow to build, as each is compared with all before it."""


class CrowdedError(Exception):
    """So many objects of one hash that each dict of the message must be looked at before it is built."""


class HashWatch:
    """Counts different objects of one hash, in constant time for each.

    Only ints beyond 64 bits and what travels as extensions can share a hash by design of the sender; whether it is a
    key is not known yet where it is seen.
    """

    def __init__(self) -> None:
        self._first: dict[int, Any] = {}
        self._crowds: dict[int, set[Any]] = {}

    def see(self, obj: Any) -> None:
        """Counts an object, unless it cannot be a key.

        Raises:
            CrowdedError: There are too many of its hash, or comparing it failed.
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
            raise CrowdedError from exc
        if len(crowd) > MAX_SAME_HASH:
            raise CrowdedError


def is_crowded(keys: Collection[Any]) -> bool:
    """Whether too many keys share a hash, which 64-bit ints, floats, text and bytes cannot bring about."""
    return len(keys) > MAX_SAME_HASH and max(Counter(map(hash, keys)).values()) > MAX_SAME_HASH
