"""What was asked of the workers that the command starts by itself; in a job there are none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LocalWorkers:
    """Options as they were given; None: they were not."""

    ranks: str | None
    launches: int | None

    @property
    def surplus(self) -> str | None:
        """Says which of them was given, for a job, which has ranks of its own and was started once."""
        if self.ranks is not None:
            return "--ranks is for local workers: under torchrun, mpiexec and srun the ranks are those of the job"
        if self.launches is not None:
            return "--launches is for local workers: the ranks of a job were started once, by torchrun, mpiexec or srun"
        return None
