"""Objects that are decoded when somebody looks at them."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

from gather_core.process_id import this_pid

T = TypeVar("T")


class LazyObjects(Sequence[T], Generic[T]):
    """The objects of all ranks as they came, each decoded once, on first access, and then kept.

    It owns its memory: the Gatherer may go on, or be closed. Threads may share it. Comparing or printing it decodes
    nothing; `list(objects)` decodes everything.

    Raises:
        DecodeError: On access, where a rank's bytes cannot be decoded; again on every access.
    """

    def __init__(self, decode: Callable[[int, Sequence[memoryview]], Any], frames: Sequence[Sequence[memoryview]]):
        """Takes one sequence of frames per group rank, in order, which nobody else writes to."""
        self._decode = decode
        self._frames: list[Sequence[memoryview] | None] = list(frames)
        self._objects: list[Any] = [None] * len(frames)
        self._lock = threading.RLock()
        self._pid = this_pid()

    def __len__(self) -> int:
        return len(self._objects)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        ranks = range(len(self))[index]
        return self._object(ranks) if isinstance(ranks, int) else [self._object(rank) for rank in ranks]

    def __repr__(self) -> str:
        num_decoded = sum(frames is None for frames in self._frames)
        return f"<LazyObjects of {len(self)} ranks, {num_decoded} decoded>"

    def _object(self, rank: int) -> T:
        if self._pid != this_pid():  # a thread that is not in this child may have held the lock
            self._lock = threading.RLock()
            self._pid = this_pid()
        with self._lock:
            frames = self._frames[rank]
            if frames is not None:
                self._objects[rank] = self._decode(rank, frames)
                self._frames[rank] = None
            obj: T = self._objects[rank]
        return obj
