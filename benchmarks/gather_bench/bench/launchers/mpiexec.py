"""The ranks of a job that mpiexec has started: mpi4py knows them, and tells them where torch's store is."""

import socket
from dataclasses import dataclass
from typing import Any, Self

from gather_bench.bench.launchers.job import JOIN_TIMEOUT, Job, JobError
from gather_core.errors import summarize

_HOW_TO_RUN = "start it with the mpiexec of the MPI that mpi4py was built for"


@dataclass(frozen=True)
class MpiexecJob(Job):
    """Rank 0 serves the store on a port that its system picks."""

    started_by = "mpiexec"
    advice = _HOW_TO_RUN

    @classmethod
    def find(cls, told_size: str) -> Self:
        """(all ranks) Asks MPI, which is initialised by that.

        Args:
            told_size: The variable by which mpiexec tells how many ranks there are, for messages.

        Raises:
            JobError: There is no mpi4py, or no MPI that knows of several ranks.
        """
        because = f"{told_size}: mpiexec has started this process"
        try:
            from mpi4py import MPI
        except ImportError as exc:
            raise JobError(f"{because}, but mpi4py is not installed: pip install 'gather-core[mpi]'") from exc
        except RuntimeError as exc:
            raise JobError(f"{because}, but MPI cannot be used: {summarize(exc)}") from exc
        world = MPI.COMM_WORLD
        if world.size == 1:
            raise JobError(f"{because}, but MPI knows of one rank: {_HOW_TO_RUN}")
        host = world.Split_type(MPI.COMM_TYPE_SHARED)
        try:
            return cls(world.rank, world.size, host.rank, host.size)
        finally:
            host.Free()

    def rendezvous(self) -> dict[str, Any]:
        """Broadcasts where the store is that rank 0 serves."""
        from mpi4py import MPI
        from torch._C._distributed_c10d import TCPStore

        from gather_bench.loopback import ADDRESS, loopback_store

        world, is_one_host = MPI.COMM_WORLD, self.local_world_size == self.world_size
        store: Any = None
        address: tuple[str, int] | str = ""
        if self.is_root:
            try:
                host = ADDRESS if is_one_host else socket.gethostname()
                store = loopback_store() if is_one_host else TCPStore(host, 0, None, True, wait_for_workers=False)
                address = (host, store.port)
            except (RuntimeError, OSError) as exc:
                address = summarize(exc)
        address = world.bcast(address)
        if isinstance(address, str):
            raise JobError(f"rank 0 cannot serve a store: {address}")
        store = store or TCPStore(*address, None, False, timeout=JOIN_TIMEOUT, wait_for_workers=False)
        return {"store": store, "rank": self.rank, "world_size": self.world_size}

    def end_others(self, status: int) -> None:
        """Ends all ranks: else this one waits for them in MPI's own end, and they for it in what it has failed in."""
        import sys

        from mpi4py import MPI

        sys.stdout.flush()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(status)
