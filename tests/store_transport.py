"""The smallest transport that keeps the whole contract: an example of how to write one."""

from collections.abc import Sequence
from time import sleep

from gather_core import AbortedError, Capabilities, GroupContext, Transport, TransportError, TransportTimeoutError
from gather_core.deadline import Deadline
from gather_core.memory import aligned_buffer


class StoreTransport(Transport):
    """Every rank sets its slot as a key of the group's store, and reads those of all: slow, and works anywhere."""

    name = "store"
    capabilities = Capabilities(locality="any")
    _ended = "it is not open"

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._context, self._slot_nbytes, self._round = context, slot_nbytes, 0
        self._slot = aligned_buffer(slot_nbytes)
        self._ended = ""
        self.all_gather_slots(0, timeout_s=timeout_s)  # to which all ranks have to come

    @property
    def rank(self) -> int:
        return self._context.rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        return self._slot[:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if self._ended:
            raise TransportError(self._ended)
        store, keys = self._context.store, [f"{self._round}/{rank}" for rank in range(self._context.world_size)]
        store.set(keys[self.rank], bytes(self._slot[:nbytes]))
        try:
            self._wait_for(keys, Deadline(timeout_s))
        except BaseException:
            self._ended = "an earlier call failed"
            raise
        if self._round:  # that all have come to this round says that they have left the one before
            store.delete_key(f"{self._round - 1}/{self.rank}")
        self._round += 1
        return [self._received(store.get(key)) for key in keys]

    def _wait_for(self, keys: list[str], deadline: Deadline) -> None:
        store = self._context.store
        while not store.check(keys):
            self.check_interrupt()
            if store.check(["aborted"]):
                rank, _, reason = store.get("aborted").decode().partition(" ")
                raise AbortedError(f"rank {rank} aborted: {reason}", int(rank))
            if deadline.passed():
                late = [rank for rank, key in enumerate(keys) if not store.check([key])]
                raise TransportTimeoutError(f"ranks {late} did not come within {deadline.timeout_s:g} s", late)
            sleep(0.001)

    def _received(self, content: bytes) -> memoryview:
        view = aligned_buffer(len(content))
        view[:] = content
        return view.toreadonly()

    def abort(self, reason: str) -> None:
        if not self._ended:
            self._ended = f"aborted: {reason}"
            self._context.store.set("aborted", f"{self.rank} {reason}")

    def close(self) -> None:
        self._ended = "it is closed"
