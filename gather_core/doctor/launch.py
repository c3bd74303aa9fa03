"""As which of how many ranks this process was started, as launchers tell it in variables."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gather_core.doctor.facts import Launch


@dataclass(frozen=True)
class _Launcher:
    """The variables of one launcher."""

    by: Literal["torchrun", "mpiexec", "srun"]
    world_size: str
    rank: str
    local_ranks: tuple[str, ...]


_LAUNCHERS = (
    _Launcher("torchrun", "WORLD_SIZE", "RANK", ("LOCAL_WORLD_SIZE",)),
    _Launcher("mpiexec", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    _Launcher("mpiexec", "PMI_SIZE", "PMI_RANK", ("MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE")),
    _Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")),
)
"""The first that fits counts: torchrun may run under the others. PMI's variables are those of MPICH, Intel MPI and
MVAPICH, under mpiexec and srun."""


def look_at_launch(variables: Mapping[str, str] = os.environ) -> Launch:
    """Reads who has started this process; what is no number counts as not told."""
    for one in _LAUNCHERS:
        world_size = _number(variables.get(one.world_size))
        if world_size:
            rank = _number(variables.get(one.rank)) or 0
            local = (_number(variables.get(name)) for name in one.local_ranks)
            return Launch(one.by, rank, world_size, next(filter(None, local), None))
    return Launch("nobody")


def _number(text: str | None) -> int | None:
    """The number that a text begins with; Slurm writes "2(x3)" for two ranks on each of three hosts, and "2,1" for
    different ones, of which the first is near enough.
    """
    found = re.match(r"\d+", text or "")
    return int(found.group()) if found else None
