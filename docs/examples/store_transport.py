"""A transport over the job's own store: each rank sets its slot as a key, and gets those of all. Slow, anywhere."""

from collections.abc import Sequence
from time import sleep

from gather_core import AbortedError, Capabilities, Deadline, GroupContext, Transport, TransportError, aligned_buffer
from gather_core.errors import TransportTimeoutError


class StoreTransport(Transport):
    name = "store"
    capabilities = Capabilities(locality="any")  # its ranks may be on any hosts; the rest promises least
    rank = slot_nbytes = 0  # until `open`
    _ended = "it is not open"

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._context, self._round, self._slot = context, 0, aligned_buffer(slot_nbytes)
        self.rank, self.slot_nbytes, self._ended = context.rank, slot_nbytes, ""
        self.all_gather_slots(0, timeout_s=timeout_s)  # to which all ranks have to come

    def slot(self, nbytes: int) -> memoryview:
        return self._slot[:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if self._ended:
            raise TransportError(f"the transport cannot be used: {self._ended}")
        store, keys = self._context.store, [f"{self._round}/{rank}" for rank in range(self._context.world_size)]
        store.set(keys[self.rank], bytes(self._slot[:nbytes]))
        try:
            self._wait_for(keys, Deadline(timeout_s))
        except BaseException:
            self._ended = "an earlier call failed"
            raise
        store.delete_key(f"{self._round - 1}/{self.rank}")  # all have come to this round, and so left the one before
        self._round += 1
        return [self._received(store.get(key)) for key in keys]

    def _wait_for(self, keys: list[str], deadline: Deadline) -> None:
        while late := [rank for rank, key in enumerate(keys) if not self._context.store.check([key])]:
            self.check_interrupt()  # raises what a Ctrl-C or another rank's abort is to raise here
            if self._context.store.check(["aborted"]):
                rank, _, reason = self._context.store.get("aborted").decode().partition(" ")
                raise AbortedError(f"rank {rank} aborted: {reason}", int(rank))
            if deadline.passed():
                raise TransportTimeoutError(f"ranks {late} did not come within {deadline.timeout_s:g} s", late)
            sleep(0.001)

    def _received(self, content: bytes) -> memoryview:
        view = aligned_buffer(len(content))  # new memory in every round: nobody overwrites what is lent
        view[:] = content
        return view.toreadonly()

    def abort(self, reason: str) -> None:
        self._ended = self._ended or f"aborted: {reason}"
        if self.slot_nbytes:  # it was opened; the first to give up is the cause, and stays it
            self._context.store.compare_set("aborted", "", f"{self.rank} {reason}")

    def close(self) -> None:
        self._ended = "it is closed"
