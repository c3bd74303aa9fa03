"""The part of the job's store that a transport may use while it opens, and that is tidied up afterwards."""

from typing import Any

from gather_core.local_store import ScopedStore


class ScratchStore(ScopedStore):
    """A store under a prefix that remembers which keys this rank has written."""

    def __init__(self, prefix: str, store: Any) -> None:
        super().__init__(prefix, store)
        self._written: set[str] = set()

    def set(self, key: str, value: Any, /) -> None:  # noqa: D102
        self._written.add(key)
        super().set(key, value)

    def add(self, key: str, amount: int, /) -> int:  # noqa: D102
        self._written.add(key)
        return super().add(key, amount)

    def compare_set(self, key: str, expected: Any, desired: Any, /) -> bytes:  # noqa: D102
        self._written.add(key)
        return super().compare_set(key, expected, desired)

    def tidy_up(self) -> None:
        """Deletes what this rank has written; for when no rank needs it any more."""
        while self._written:
            self.delete_key(self._written.pop())
