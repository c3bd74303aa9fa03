"""Who has started this process, as far as can be told before anything is initialised."""

import importlib.util
import os
import stat
import sys
import warnings
from types import FrameType
from typing import Any

_PACKAGE = __name__.partition(".")[0]
_TORCH_SIZE = "WORLD_SIZE"
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Set by mpiexec of MPICH, Intel MPI and MVAPICH, by srun for them, and by mpiexec of Open MPI."""
_SLURM_SIZE = "SLURM_STEP_NUM_TASKS"
"""Set by srun for each task, and not for a batch script."""
_PMIX_RANK = "PMIX_RANK"
"""Set by srun and by mpiexec of Open MPI; tells no size."""
_PMI_FD = "PMI_FD"
"""The connection to mpiexec, which children of the process that it started do not inherit, unlike variables."""


def warn_if_alone() -> None:
    """Warns where this process was launched as one of several, and would gather from itself alone."""
    launched = launched_as_one_of_several()
    if launched:
        advice = "call torch.distributed.init_process_group() before"
        if not launched.startswith(_TORCH_SIZE):
            advice += ", or install gather-core[mpi] in a job of MPI's"
        warnings.warn(
            f"{launched}, but torch.distributed is not initialised: this process gathers from itself alone; {advice}",
            RuntimeWarning,
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """The `stacklevel` of a warning that shall point at the line that has called gather-core."""
    frame: FrameType | None = sys._getframe(1)
    level = 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, level = frame.f_back, level + 1
    return level + 1


def launched_as_one_of_several() -> str:
    """Says which variable tells so, and its value; empty where none does."""
    for variable in (_TORCH_SIZE, *_MPI_SIZES, _SLURM_SIZE):
        if os.environ.get(variable, "1") != "1":
            return f"{variable} is {os.environ[variable]}"
    return ""


def is_communicator(group: object) -> bool:
    """Whether it is a communicator of mpi4py, which is not imported for a process that never did."""
    mpi = _mpi()
    return mpi is not None and isinstance(group, mpi.Comm)


def belongs_to_mpi() -> bool:
    """Whether this process is one of several ranks of an MPI job.

    It is where mpi4py was imported and says so; else where mpiexec or srun has started this very process for an MPI
    that can be used. (To initialise MPI in a process that an MPI rank has started in turn ends that process.)
    """
    mpi = _mpi()
    if mpi is not None and mpi.Is_initialized():
        return not mpi.Is_finalized() and mpi.COMM_WORLD.size > 1
    if _TORCH_SIZE in os.environ or importlib.util.find_spec("mpi4py") is None:
        return False
    if _PMI_FD in os.environ and not _is_open_socket(os.environ[_PMI_FD]):
        return False
    sizes = [*_MPI_SIZES, *([_SLURM_SIZE] if _PMIX_RANK in os.environ else [])]
    return any(os.environ.get(variable, "1") != "1" for variable in sizes)


def _mpi() -> Any:
    return sys.modules.get("mpi4py.MPI")


def _is_open_socket(text: str) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(int(text)).st_mode)
    except (OSError, ValueError):
        return False
