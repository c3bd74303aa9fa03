"""The ranks of a job that torchrun, or anything that sets the same variables, has started."""

from collections.abc import Mapping
from typing import Any, Self

from gather_bench.bench.launchers.job import Job, JobError

_RANK, _WORLD_SIZE = _VARIABLES = ("RANK", "WORLD_SIZE")
"""What makes a process a rank of a job."""
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_HOW_TO_RUN = f"start it with torchrun, or unset {' and '.join(_VARIABLES)} to measure on local workers"


class TorchrunJob(Job):
    """Its variables say where the ranks meet, and torch reads them itself."""

    started_by = "torchrun"
    advice = _HOW_TO_RUN

    @classmethod
    def find(cls, variables: Mapping[str, str]) -> Self | None:
        """Returns the job that the variables tell of, if any.

        Raises:
            JobError: They tell of half a job.
        """
        if not all(name in variables for name in _VARIABLES):
            return None
        if problem := _problem(variables):
            raise JobError(problem)
        local = (int(variables.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        return cls(int(variables[_RANK]), int(variables[_WORLD_SIZE]), *local)

    def rendezvous(self) -> dict[str, Any]:
        """Says nothing that the variables do not say."""
        return {}


def _problem(variables: Mapping[str, str]) -> str | None:
    """Says what the job's variables lack."""
    set_here = ", ".join(f"{name}={variables[name]}" for name in _VARIABLES)
    because = f"{set_here} in the environment make this a rank of a launched job"
    if missing := [name for name in _ADDRESS if not variables.get(name)]:
        return f"{because}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: {_HOW_TO_RUN}"
    if not all(variables[name].isascii() and variables[name].isdecimal() for name in (*_VARIABLES, "MASTER_PORT")):
        return f"{because}, but they or MASTER_PORT are no numbers: {_HOW_TO_RUN}"
    if not int(variables[_RANK]) < int(variables[_WORLD_SIZE]):
        return f"{because}, but there is no such rank: {_HOW_TO_RUN}"
    return None
