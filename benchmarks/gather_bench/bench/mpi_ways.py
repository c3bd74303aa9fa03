"""mpi4py's own ways to gather objects, in a job that MPI knows."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

from gather_bench.bench.ways import ReadyWay
from gather_bench.looking import looked_at
from gather_core.errors import summarize
from gather_core.launched import belongs_to_mpi


class Mpi4pyObjects(ReadyWay):
    """`Comm.allgather`: pickles, exchanges sizes, then the joined bytes, and unpickles."""

    def __init__(self, obj: Any) -> None:
        self.encoded_nbytes = len(pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL))
        self._obj = obj
        self._communicator = _world()

    def __call__(self) -> Any:
        """Pickles, gathers, unpickles, and looks at what has come."""
        return looked_at(self._communicator.allgather(self._obj))


class Mpi4pyPkl5(Mpi4pyObjects):
    """The same of `mpi4py.util.pkl5`: with the buffers of pickle's protocol 5 out of band."""

    def __init__(self, obj: Any) -> None:
        from mpi4py.util import pkl5

        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(obj, protocol=5, buffer_callback=buffers.append)
        self.encoded_nbytes = len(head) + sum(buffer.raw().nbytes for buffer in buffers)
        self._obj = obj
        self._communicator = pkl5.Intracomm(_world())


MPI_PEERS: Mapping[str, Callable[[Any], ReadyWay]] = {
    "mpi4py_allgather": Mpi4pyObjects,
    "mpi4py_pkl5": Mpi4pyPkl5,
}
"""Name -> what makes it ready for an object, on one rank alone."""


def mpi_problem(world_size: int) -> str | None:
    """Says why mpi4py cannot gather between the ranks of this job, or returns None."""
    if not belongs_to_mpi():
        return "mpi4py is not installed, or this job was not started for MPI (srun --mpi=...)"
    try:
        size = _world().size
    except (ImportError, RuntimeError) as exc:
        return f"MPI cannot be used: {summarize(exc)}"
    return None if size == world_size else f"MPI knows {size} of the job's {world_size} ranks"


def _world() -> Any:
    from mpi4py import MPI

    return MPI.COMM_WORLD
