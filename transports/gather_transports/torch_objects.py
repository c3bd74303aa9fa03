"""Bytes through `torch.distributed.all_gather_object`: what every backend has, and a baseline to compare with."""

from collections.abc import Sequence
from typing import Any

from gather_core.codec import Trust
from gather_core.errors import PeerLostError, ProtocolError, TransportError, TransportTimeoutError, summarize
from gather_core.memory import align, aligned_buffer
from gather_core.transport import Capabilities, GroupContext, PeerState, Transport
from gather_transports.elastic_slot import ElasticSlot
from gather_transports.torch_errors import first_line, is_timeout

_SHARED = "this transport shares the job's group with it"


class AllGatherObjectTransport(Transport):
    """Works on the job's own group, over any backend, and so never beside another collective of that group.

    A rank that waits in it waits as long as the group's own timeout says, and learns of another's abort only then. The
    bytes are pickled on their way, so receiving them can execute code that a peer chose, whatever the codec.
    """

    name = "all_gather_object"
    capabilities = Capabilities(
        locality="any",
        elastic_slots=True,
        deadline=False,
        death_detection="timeout",
        trust=Trust.CODE,
        needs_whole_group=True,
        shares_group=True,
    )

    def __init__(self) -> None:
        self._slot = ElasticSlot()
        self._group: Any = None

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        import torch.distributed as dist

        if not dist.is_available():
            return "this build of torch has no torch.distributed"
        if context is not None and not isinstance(context.process_group, dist.ProcessGroup):
            return "it needs a group of torch.distributed"
        return None

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._rank = context.rank
        self._world_size = context.world_size
        self._slot_nbytes = slot_nbytes
        self._slot = ElasticSlot(slot_nbytes)
        self._group = context.process_group

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        return self._slot.view(nbytes)

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        from torch.distributed.distributed_c10d import all_gather_object  # its own, whatever a job has put in its place

        if self._group is None:
            raise TransportError("the transport is not open")
        self.check_interrupt()
        filled = bytes(self._slot.take(nbytes))
        gathered: list[Any] = [None] * self._world_size
        try:
            all_gather_object(gathered, filled, self._group)
        except RuntimeError as exc:
            text = first_line(exc)
            error = TransportTimeoutError if is_timeout(text) else PeerLostError
            raise error(f"all_gather_object failed: {text}") from exc
        except Exception as exc:  # what it unpickled was not ours
            raise ProtocolError(f"what another rank sent cannot be unpickled: {summarize(exc)}; {_SHARED}") from exc
        return _aligned(gathered)

    def peers(self) -> list[PeerState]:
        return [PeerState.UNKNOWN] * self._world_size

    def abort(self, reason: str) -> None:
        """Nothing ends what is pending on the job's own group."""

    def close(self) -> None:
        self._group = None
        self._slot = ElasticSlot()


def _aligned(gathered: Sequence[object]) -> list[memoryview]:
    """Copies what has arrived to where slots must lie."""
    views = []
    for rank, filled in enumerate(gathered):
        if type(filled) is not bytes:
            raise ProtocolError(
                f"rank {rank} was in an all_gather_object of its own, with a {type(filled).__name__}: {_SHARED}"
            )
        memory = aligned_buffer(align(len(filled)))
        memory[: len(filled)] = filled
        views.append(memory[: len(filled)].toreadonly())
    return views
