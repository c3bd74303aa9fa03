"""Which job this process is a rank of, if any."""

import importlib.util
import os
from collections.abc import Mapping
from contextlib import suppress

from gather_bench.bench.launchers.job import Job, JobError
from gather_bench.bench.launchers.mpiexec import MpiexecJob
from gather_bench.bench.launchers.srun import SrunJob
from gather_bench.bench.launchers.torchrun import TorchrunJob
from gather_core.launched import belongs_to_mpi

_OF_MPIEXEC = (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))
"""Set by mpiexec of MPICH, Intel MPI and MVAPICH, and by srun for them; by mpiexec of Open MPI."""


def find_job(variables: Mapping[str, str] = os.environ) -> Job | None:
    """Returns the job of several ranks that a launcher has started this process for; None: there is none.

    Where several have set variables, torchrun counts first, which may run under the others; then mpiexec, which may
    start its ranks through srun; then srun, which may tell MPI the same as it tells itself.

    Raises:
        JobError: There is such a job, but its ranks cannot find each other.
    """
    if torchrun := TorchrunJob.find(variables):
        return torchrun
    srun = SrunJob.find(variables)
    told = _told_by_mpiexec(variables)
    if told is None or (srun and _is_the_same(srun, told, variables)):
        return srun
    if _is_of_mpiexec():
        return MpiexecJob.find(f"{told[0]} is {variables[told[0]]}")
    return srun  # a rank of MPI's has started this process, which is none itself


def is_beside_root(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank of a job and not rank 0; initialises nothing, and of half a job there is none."""
    with suppress(JobError):
        if torchrun := TorchrunJob.find(variables):
            return not torchrun.is_root
        told = _told_by_mpiexec(variables)
        if told is not None and _is_of_mpiexec():
            return variables.get(told[1], "0") != "0"
        srun = SrunJob.find(variables)
        return srun is not None and not srun.is_root
    return False


def _told_by_mpiexec(variables: Mapping[str, str]) -> tuple[str, str] | None:
    """The variables that tell how many ranks there are, and which one this is."""
    return next((told for told in _OF_MPIEXEC if variables.get(told[0], "1") != "1"), None)


def _is_of_mpiexec() -> bool:
    """Whether mpiexec has started this very process; without mpi4py, what its variables tell is believed."""
    return belongs_to_mpi() or importlib.util.find_spec("mpi4py") is None


def _is_the_same(srun: Job, told: tuple[str, str], variables: Mapping[str, str]) -> bool:
    """Whether both tell the same rank of as many."""
    size, rank = (variables.get(name) for name in told)
    return (size, rank) == (str(srun.world_size), str(srun.rank))
