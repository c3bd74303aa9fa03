"""The rendezvous of a launcher that has no others to meet: one node, on loopback.

The launcher's own `c10d` rendezvous does the same with stores that listen on all interfaces.
"""

from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from gather_bench.loopback import ADDRESS, loopback_store

BACKEND = "loopback"


class LoopbackRendezvous(RendezvousHandler):
    """Serves one store, which the workers share as theirs."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._closed = False
        self._store = loopback_store()

    def get_backend(self) -> str:
        """Names the backend."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """The workers connect to the launcher's store instead of starting one."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Returns at once: this node is node 0 of 1."""
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(ADDRESS, self._store.port))

    def is_closed(self) -> bool:
        """Whether `set_closed` was called."""
        return self._closed

    def set_closed(self) -> None:
        """Nobody may join any more; nobody else would."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """No other node ever waits."""
        return 0

    def get_run_id(self) -> str:
        """Returns the launcher's id of this run."""
        return self._run_id

    def shutdown(self) -> bool:
        """Nothing is left open but the store, which ends with this object."""
        return True


def register() -> None:
    """Makes the launcher know the backend; idempotent."""
    rendezvous_handler_registry.register(BACKEND, _create)


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return LoopbackRendezvous(parameters.run_id)
