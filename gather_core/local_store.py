"""A key-value store for ranks that share one process: what `single` and `threads` use in place of torch's stores."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from gather_core.bell import Bell, Listeners


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


class LocalStore:
    """The part of `torch.distributed.Store` that gather-core uses, for threads of one process; same semantics."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: Any, /) -> None:
        """Sets a key."""
        with self._changed:
            self._values[key] = _bytes(value)
            self._changed.notify_all()

    def get(self, key: str, /) -> bytes:
        """Returns a key's value.

        Raises:
            KeyError: It is not set; nothing waits here.
        """
        with self._changed:
            return self._values[key]

    def add(self, key: str, amount: int, /) -> int:
        """Adds to a counter, which starts at 0; returns the sum."""
        with self._changed:
            total = int(self._values.get(key, b"0")) + amount
            self.set(key, str(total))
            return total

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are set."""
        with self._changed:
            return all(key in self._values for key in keys)

    def wait(self, keys: list[str], timeout: timedelta, /) -> None:
        """Waits until all keys are set.

        Raises:
            TimeoutError: They are not, in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.check(keys), timeout.total_seconds()):
                raise TimeoutError(f"keys {keys} were not set in time")

    def compare_set(self, key: str, expected: Any, desired: Any, /) -> bytes:
        """Sets a key if it has the expected value, or is not set and "" is expected; returns what it then holds."""
        with self._changed:
            if self._values.get(key, b"") == _bytes(expected):
                self.set(key, desired)
            return self._values.get(key, b"")

    def delete_key(self, key: str, /) -> bool:
        """Deletes a key; returns whether it was set."""
        with self._changed:
            return self._values.pop(key, None) is not None

    def clone(self) -> "LocalStore":
        """Returns itself: no connection that a blocked call could hold."""
        return self


class ScopedStore:
    """A store under a key prefix; as torch's PrefixStore, for any store."""

    def __init__(self, prefix: str, store: Any) -> None:
        self._prefix = prefix
        self._store = store

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def set(self, key: str, value: Any, /) -> None:  # noqa: D102
        self._store.set(self._key(key), value)

    def get(self, key: str, /) -> bytes:  # noqa: D102
        return bytes(self._store.get(self._key(key)))

    def add(self, key: str, amount: int, /) -> int:  # noqa: D102
        return int(self._store.add(self._key(key), amount))

    def check(self, keys: list[str], /) -> bool:  # noqa: D102
        return bool(self._store.check([self._key(key) for key in keys]))

    def wait(self, keys: list[str], timeout: timedelta, /) -> None:  # noqa: D102
        self._store.wait([self._key(key) for key in keys], timeout)

    def compare_set(self, key: str, expected: Any, desired: Any, /) -> bytes:  # noqa: D102
        return bytes(self._store.compare_set(self._key(key), expected, desired))

    def delete_key(self, key: str, /) -> bool:  # noqa: D102
        return bool(self._store.delete_key(self._key(key)))

    def clone(self) -> "ScopedStore":  # noqa: D102
        return ScopedStore(self._prefix, self._store.clone())


class LocalBell(Bell):
    """Rings ranks of this process by calling them."""

    def __init__(self) -> None:
        self._listeners = Listeners()

    def listen(self, scope: str, rank: int, on_ring: Callable[[], None]) -> None:
        """Registers the callback; it runs in the ringing thread."""
        self._listeners.add(scope, rank, on_ring)

    def stop_listening(self, scope: str, rank: int, last_answer: Callable[[], None]) -> None:
        """See `Bell.stop_listening`."""
        self._listeners.retire(scope, rank, last_answer)

    def ring(self, scope: str, ranks: tuple[int, ...]) -> None:
        """Calls each rank's callback, if it has one."""
        for rank in ranks:
            self._listeners.call(scope, rank)
