"""Bells: how one rank makes others look into the store, without anybody polling it.

`StoreBell` is one per process: a daemon thread that blocks in a `wait` on a connection of its own, so that listening
costs nothing until a bell is rung, and a blocking call of the job on its own store client stops nobody.
"""

import atexit
import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from gather_core.errors import ClosedError
from gather_core.process_id import this_pid

_log = logging.getLogger("gather_core")
_FOREVER = timedelta(days=3650)
_END_WITHIN_S = 1.0
_NUM_LAST_ANSWERS = 100


class Bell(ABC):
    """Wakes chosen ranks of a scope. A scope is one Gatherer's key prefix in the store."""

    @abstractmethod
    def listen(self, scope: str, rank: int, on_ring: Callable[[], None]) -> None:
        """Calls `on_ring` in some thread whenever the global rank is rung for `scope`; it must be quick."""

    @abstractmethod
    def stop_listening(self, scope: str, rank: int, last_answer: Callable[[], None]) -> None:
        """Calls `last_answer` instead from now on, until many more have stopped listening; idempotent.

        So a rank that is done can still say so. `last_answer` is kept: it must not hold on to anything large.
        """

    @abstractmethod
    def ring(self, scope: str, ranks: tuple[int, ...]) -> None:
        """Rings global ranks; a rank that does not listen hears nothing. May raise what the store raises."""


class Listeners:
    """What to call for a ring: one function per scope and rank, and the last answers of those that listen no more."""

    def __init__(self) -> None:
        self._listening: dict[tuple[str, int], Callable[[], None]] = {}
        self._last_answers: deque[tuple[tuple[str, int], Callable[[], None]]] = deque(maxlen=_NUM_LAST_ANSWERS)

    def add(self, scope: str, rank: int, on_ring: Callable[[], None]) -> None:
        """See `Bell.listen`."""
        self._listening[scope, rank] = on_ring

    def retire(self, scope: str, rank: int, last_answer: Callable[[], None]) -> None:
        """See `Bell.stop_listening`."""
        key = (scope, rank)
        if key in self._listening:
            self._last_answers.append((key, last_answer))  # first, so that no ring falls between
            del self._listening[key]

    def call(self, scope: str, rank: int) -> None:
        """Calls what there is to call."""
        key = (scope, rank)
        if on_ring := self._listening.get(key) or dict(self._last_answers.copy()).get(key):
            on_ring()

    def clear(self) -> None:
        """Forgets all."""
        self._listening.clear()
        self._last_answers.clear()


class StoreBell(Bell):
    """Rings through the job's store: a numbered key per ring and rank."""

    def __init__(self, store: Any, rank: int) -> None:
        """Starts listening for global rank `rank`; `store` is shared by the whole job and is cloned."""
        self.store = store.clone()
        """A connection that no call of the job blocks; shared by this process's Gatherers."""
        self.pid = this_pid()
        """The process that may use it: a forked child shares the sockets, and would garble what both send."""
        self._rank = rank
        self._lock = threading.Lock()
        self._listeners = Listeners()
        self._closed = threading.Event()
        next_ring = self.store.add(self._counter(rank), 0) + 1
        self._thread = threading.Thread(
            target=self._serve, args=(store.clone(), next_ring), name="gather-core-bell", daemon=True
        )
        self._thread.start()
        self._ender = threading.Thread(target=self._end, name="gather-core-bell-end", daemon=True)
        self._ender.start()  # now, as from Python 3.12 on none can be started at exit

    @staticmethod
    def _counter(rank: int) -> str:
        return f"gather_core/bell/{rank}/count"

    @staticmethod
    def _key(rank: int, ring: int) -> str:
        return f"gather_core/bell/{rank}/{ring}"

    def listen(self, scope: str, rank: int, on_ring: Callable[[], None]) -> None:
        """See `Bell.listen`; `rank` is this process's."""
        self._listeners.add(scope, rank, on_ring)

    def stop_listening(self, scope: str, rank: int, last_answer: Callable[[], None]) -> None:
        """See `Bell.stop_listening`."""
        self._listeners.retire(scope, rank, last_answer)

    def ring(self, scope: str, ranks: tuple[int, ...]) -> None:
        """See `Bell.ring`."""
        with self._lock:
            for rank in ranks:
                ring = self.store.add(self._counter(rank), 1)
                self.store.set(self._key(rank, ring), scope)

    def close(self) -> None:
        """Ends the threads; gives up after a second or two where the store does not answer, and never raises."""
        if self._closed.is_set() or self.pid != this_pid():
            return
        self._listeners.clear()
        self._closed.set()
        for thread in (self._ender, self._thread):
            if thread is not threading.current_thread():  # a garbage collection can end up here anywhere
                thread.join(_END_WITHIN_S)
                if thread.is_alive():
                    return

    def _end(self) -> None:
        """Rings ourselves once the bell is closed: what blocks in a `wait` cannot be ended otherwise."""
        self._closed.wait()
        try:
            self.ring("", (self._rank,))
        except RuntimeError as exc:
            _log.debug("the store is gone, its bell is silent: %s", exc)

    def _serve(self, store: Any, ring: int) -> None:
        while not self._closed.is_set():
            key = self._key(self._rank, ring)
            try:
                store.wait([key], _FOREVER)
                scope = store.get(key).decode()
                store.delete_key(key)
                self._listeners.call(scope, self._rank)
            except RuntimeError as exc:
                _log.debug("the store is gone, its bell is silent: %s", exc)
                return
            ring += 1


_bells: "weakref.WeakKeyDictionary[Any, StoreBell]" = weakref.WeakKeyDictionary()
_bells_lock = threading.Lock()


def bell_of(world: Any, store: Any, rank: int) -> StoreBell:
    """Returns the process's bell in a world (any object that lives as long as the job's store), made on first use.

    Raises:
        ClosedError: The world belongs to the process of which this one was forked; nothing was written to the store.
    """
    inherited = _bells.get(world)
    if inherited is not None and inherited.pid != this_pid():  # asked without the lock, which a fork may leave locked
        raise ClosedError(
            "the process group belongs to the parent process: initialise one of its own in the child, "
            'or use transport="single" for the child alone'
        )
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
