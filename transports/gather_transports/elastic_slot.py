"""A slot in this process's memory that grows for a large payload, and shrinks again once that is gone."""

from gather_core.memory import aligned_buffer


class ElasticSlot:
    """64-byte aligned memory of `slot_nbytes` bytes, or more while more is asked for."""

    def __init__(self, slot_nbytes: int = 0) -> None:
        self._slot_nbytes = slot_nbytes
        self._memory = aligned_buffer(slot_nbytes)

    def __len__(self) -> int:
        return len(self._memory)

    def view(self, nbytes: int) -> memoryview:
        """Returns the first `nbytes`, to be written."""
        if nbytes > len(self._memory):
            self._memory = aligned_buffer(nbytes)
        return self._memory[:nbytes]

    def take(self, nbytes: int) -> memoryview:
        """Returns what was written, read-only; what goes beyond the slot size is left to that view alone."""
        filled = self._memory[:nbytes].toreadonly()
        if len(self._memory) > self._slot_nbytes:
            self._memory = aligned_buffer(self._slot_nbytes)
        return filled
