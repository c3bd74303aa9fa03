"""The ranks of a job that srun has started, with or without MPI."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gather_bench.bench.launchers.job import JOIN_TIMEOUT, Job, JobError

_OF_A_STEP = ("SLURM_STEP_NODELIST", "SLURM_SRUN_COMM_HOST", "SLURM_LAUNCH_NODE_IPADDR")
"""Set by srun for its tasks and not for a batch script, which has SLURM_PROCID and SLURM_NTASKS as well."""
_NUM_NODES = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
_NODES = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_LAUNCH_NODE_IPADDR")
_THIS_HOST = "127.0.0.1"
_FIRST_PORT = 10_000
_NUM_PORTS = 20_000
"""Below the ports that systems give out by themselves."""
_PORTS_PER_STEP = 1009
"""Steps of a job that run at the same time meet at ports far from each other, and of the next jobs."""


@dataclass(frozen=True)
class SrunJob(Job):
    """Rank 0 serves the store on the first host of the step, at a port that follows from job and step."""

    host: str
    port: int

    started_by = "srun"

    @classmethod
    def find(cls, variables: Mapping[str, str]) -> Self | None:
        """Returns the job that the variables tell of, if any; one task alone is none.

        Raises:
            JobError: There is no such rank, or they do not say where the ranks can meet.
        """
        rank, world_size = _number(variables, "SLURM_PROCID"), _world_size(variables)
        if rank is None or world_size is None or world_size < 2:
            return None
        if not 0 <= rank < world_size:
            raise JobError(
                f"SLURM_PROCID is {rank}, and srun has started {world_size} tasks: there is no such rank; start it "
                "with srun, or unset SLURM_PROCID to measure on local workers"
            )
        return cls(
            rank,
            world_size,
            _number(variables, "SLURM_LOCALID") or 0,
            _number(variables, "SLURM_STEP_TASKS_PER_NODE") or 0,
            _host(variables),
            _number(variables, "MASTER_PORT") or _port(variables),
        )

    def rendezvous(self) -> dict[str, Any]:
        """Serves the store on rank 0, joins it elsewhere."""
        from torch._C._distributed_c10d import TCPStore

        store = TCPStore(self.host, self.port, self.world_size, self.is_root, timeout=JOIN_TIMEOUT)
        return {"store": store, "rank": self.rank, "world_size": self.world_size}

    @property
    def advice(self) -> str:
        """The address may be taken, or wrong."""
        return (
            f"the ranks meet at {self.host}:{self.port}; set MASTER_ADDR or MASTER_PORT for another address of rank 0"
        )


def _world_size(variables: Mapping[str, str]) -> int | None:
    told = _number(variables, "SLURM_STEP_NUM_TASKS")
    if told is None and any(name in variables for name in _OF_A_STEP):
        return _number(variables, "SLURM_NTASKS")
    return told


def _host(variables: Mapping[str, str]) -> str:
    if variables.get("MASTER_ADDR"):
        return variables["MASTER_ADDR"]
    num_nodes = next(filter(None, (_number(variables, name) for name in _NUM_NODES)), None)
    if num_nodes == 1:
        return _THIS_HOST
    for name in _NODES:
        if host := first_host(variables.get(name, "")):
            return host
    raise JobError(
        f"srun has started this process, but none of {', '.join(_NODES)} is set: set MASTER_ADDR to rank 0's"
    )


def first_host(nodes: str) -> str:
    """Returns the first host of a list as Slurm writes it: node01 of node[01-03,07],login, r1n2 of r[1-4]n[2,5]."""
    first = re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes)
    return first.partition(",")[0].strip()


def _port(variables: Mapping[str, str]) -> int:
    job, step = (_number(variables, name) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _FIRST_PORT + (job + _PORTS_PER_STEP * step) % _NUM_PORTS


def _number(variables: Mapping[str, str], name: str) -> int | None:
    """The number that a value begins with: Slurm writes 4(x2) for four tasks on each of two hosts."""
    found = re.match(r"-?\d+", variables.get(name, ""))
    return int(found.group()) if found else None
