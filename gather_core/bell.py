"""Bells: how one rank makes others look into the store, without anybody polling it.

`StoreBell` is one per process: a daemon thread that blocks in a `wait` on a connection of its own, so that listening
costs nothing until a bell is rung, and a blocking call of the job on its own store client stops nobody.
"""

import atexit
import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any

_log = logging.getLogger("gather_core")
_FOREVER = timedelta(days=1)


class Bell(ABC):
    """Wakes chosen ranks of a scope. A scope is one Gatherer's key prefix in the store."""

    @abstractmethod
    def listen(self, scope: str, rank: int, on_ring: Callable[[], None]) -> None:
        """Calls `on_ring` in some thread whenever the global rank is rung for `scope`; it must be quick."""

    @abstractmethod
    def stop_listening(self, scope: str, rank: int) -> None:
        """Ends that; idempotent."""

    @abstractmethod
    def ring(self, scope: str, ranks: tuple[int, ...]) -> None:
        """Rings global ranks; a rank that does not listen hears nothing. May raise what the store raises."""


class StoreBell(Bell):
    """Rings through the job's store: a numbered key per ring and rank."""

    def __init__(self, store: Any, rank: int) -> None:
        """Starts listening for global rank `rank`; `store` is shared by the whole job and is cloned."""
        self.store = store.clone()
        """A connection that no call of ours blocks; shared by this process's Gatherers."""
        self._rank = rank
        self._lock = threading.Lock()
        self._listeners: dict[str, Callable[[], None]] = {}
        self._closed = False
        next_ring = self.store.add(self._counter(rank), 0) + 1
        self._thread = threading.Thread(
            target=self._serve, args=(store.clone(), next_ring), name="gather-core-bell", daemon=True
        )
        self._thread.start()

    @staticmethod
    def _counter(rank: int) -> str:
        return f"gather_core/bell/{rank}/count"

    @staticmethod
    def _key(rank: int, ring: int) -> str:
        return f"gather_core/bell/{rank}/{ring}"

    def listen(self, scope: str, rank: int, on_ring: Callable[[], None]) -> None:
        """See `Bell.listen`; `rank` is this process's."""
        self._listeners[scope] = on_ring

    def stop_listening(self, scope: str, rank: int) -> None:
        """See `Bell.stop_listening`."""
        self._listeners.pop(scope, None)

    def ring(self, scope: str, ranks: tuple[int, ...]) -> None:
        """See `Bell.ring`."""
        with self._lock:
            for rank in ranks:
                ring = self.store.add(self._counter(rank), 1)
                self.store.set(self._key(rank, ring), scope)

    def close(self) -> None:
        """Ends the thread by ringing ourselves; without effect where the store is gone, as the thread is then too."""
        if self._closed:
            return
        self._closed = True
        if not self._thread.is_alive() or self._thread is threading.current_thread():
            return
        try:
            self.ring("", (self._rank,))
        except RuntimeError as exc:
            _log.debug("the store is gone, its bell is silent: %s", exc)
        self._thread.join(timeout=2)

    def _serve(self, store: Any, ring: int) -> None:
        while not self._closed:
            key = self._key(self._rank, ring)
            try:
                store.wait([key], _FOREVER)
                scope = store.get(key).decode()
                store.delete_key(key)
            except RuntimeError as exc:
                _log.debug("the store is gone, its bell is silent: %s", exc)
                return
            if on_ring := self._listeners.get(scope):
                on_ring()
            ring += 1


_bells: "weakref.WeakKeyDictionary[Any, StoreBell]" = weakref.WeakKeyDictionary()
_bells_lock = threading.Lock()


def bell_of(world: Any, store: Any, rank: int) -> StoreBell:
    """Returns the process's bell in a world (any object that lives as long as the job's store), made on first use."""
    with _bells_lock:
        bell = _bells.get(world)
        if bell is None:
            bell = _bells[world] = StoreBell(store, rank)
            weakref.finalize(world, bell.close).atexit = False
        return bell


@atexit.register
def _silence_bells() -> None:
    """A daemon thread that wakes inside a finalising interpreter aborts the process: end it before."""
    for bell in list(_bells.values()):
        bell.close()
