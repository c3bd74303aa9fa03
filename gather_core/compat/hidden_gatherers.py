"""The Gatherers behind the drop-ins: one per process group, made on first use, closed with the group."""

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gather_core.process_group import find_process_group, is_registered
from gather_core.process_id import this_pid

if TYPE_CHECKING:
    from gather_core.gatherer import Gatherer


class _Alone:
    """Stands for the group where there is none: this process alone."""


class _Entry:
    """One group's Gatherer, once it is made; making it blocks nobody who uses another group."""

    def __init__(self) -> None:
        self.making = threading.Lock()
        self.gatherer: Gatherer | None = None
        self.close: Callable[[], object] = _nothing_to_close


class _Hidden:
    """What one process has; a forked child begins anew, as the connections are its parent's."""

    def __init__(self) -> None:
        self.pid = this_pid()
        self._alone = _Alone()
        self._lock = threading.Lock()
        self._entries: weakref.WeakKeyDictionary[Any, _Entry] = weakref.WeakKeyDictionary()

    def gatherer_of(self, group: Any) -> "Gatherer":
        """(all ranks of the group) Returns its Gatherer, made with the job's settings."""
        group = self._alone if group is None else group
        entry = self._entry(group)
        if entry.gatherer is None:
            with entry.making:
                if entry.gatherer is None:
                    self._close_orphans()
                    entry.gatherer = _make(None if group is self._alone else group)
                    entry.close = _close_with(group, entry.gatherer)
        return entry.gatherer

    def _entry(self, group: Any) -> _Entry:
        with self._lock:
            return self._entries.setdefault(group, _Entry())

    def _close_orphans(self) -> None:
        """Closes those whose groups were destroyed and live on only because a transport, or the job, holds them."""
        with self._lock:
            orphans = [group for group in self._entries if group is not self._alone and not is_registered(group)]
            entries = [self._entries.pop(group) for group in orphans]
        for entry in entries:
            entry.close()


_hidden = _Hidden()


def hidden_gatherer(group: Any = None) -> "Gatherer":
    """(all ranks of the group) Returns the Gatherer of a ProcessGroup; the first call on a group is collective.

    Args:
        group: A ProcessGroup or 1-D DeviceMesh; None: the default group, and where none is initialised, this process
            alone.

    Raises:
        TypeError: `group` is something else; on this rank.
        ValueError: This rank is not in `group`, or it was destroyed; on this rank.
        SetupError: As from the constructor of Gatherer; the next call tries anew.
    """
    global _hidden
    if _hidden.pid != this_pid():
        _hidden = _Hidden()
    return _hidden.gatherer_of(find_process_group(group))


def _nothing_to_close() -> None:
    """What an entry has before its Gatherer."""


def _close_with(group: Any, gatherer: "Gatherer") -> Callable[[], object]:
    """Closes a Gatherer when its group dies, or when the function that is returned is called."""
    finalizer = weakref.finalize(group, gatherer.close)
    finalizer.atexit = False  # the Gatherer has an end of its own for that
    return finalizer


def _make(group: Any) -> "Gatherer":
    from gather_core.gatherer import Gatherer

    return Gatherer.from_settings(group=group)
