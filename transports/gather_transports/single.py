"""World size 1: no process group, no connection; objects are still encoded and decoded."""

from collections.abc import Sequence

from gather_core.local_store import LocalBell, LocalStore
from gather_core.process_group import is_initialized
from gather_core.transport import Capabilities, GroupContext, PeerState, Transport
from gather_transports.elastic_slot import ElasticSlot


class SingleTransport(Transport):
    """The group of one rank, so that code runs unchanged in a notebook."""

    name = "single"
    capabilities = Capabilities(locality="process", elastic_slots=True, death_detection="fast", crosses_wire=False)

    def __init__(self) -> None:
        self._slot = ElasticSlot()
        self._slot_nbytes = 0

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        if context is not None and context.world_size != 1:
            return f"it serves one rank, the group has {context.world_size}"
        return None

    @classmethod
    def join(cls, group: object) -> GroupContext:
        if group is None and not is_initialized():
            return GroupContext(rank=0, world_size=1, store=LocalStore(), bell=LocalBell(), ranks=(0,), name="single")
        return super().join(group)

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._slot_nbytes = slot_nbytes
        self._slot = ElasticSlot(slot_nbytes)

    @property
    def rank(self) -> int:
        return 0

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        return self._slot.view(nbytes)

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        return [self._slot.take(nbytes)]

    def peers(self) -> list[PeerState]:
        return [PeerState.ALIVE]

    def abort(self, reason: str) -> None:
        """Nobody to tell."""

    def close(self) -> None:
        self._slot = ElasticSlot()
