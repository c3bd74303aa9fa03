"""What passes between the command and its workers: files of one folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gather_bench.demo.corpus import Pair
from gather_bench.demo.features import features

Bags = list[tuple[list[int], list[int]]]
"""Hashed features of (question, passage), one for each pair."""


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    workers: int
    codec: str
    transport: str
    slot_nbytes: int
    epochs: int
    batch_size: int
    """Pairs per worker and step."""


@dataclass(frozen=True)
class Result:
    """What rank 0 found out."""

    description: str
    """The Gatherer's own words."""
    recall_before: float
    recall_after: float
    loss_difference: float
    """Between the workers' loss and one process's on the same global batch; the largest of any worker."""
    gradient_difference: float
    """The same for the summed gradient: the largest difference of any element."""
    largest_gradient: float
    """Of any element, for comparison."""
    train_s: float
    nbytes_per_step: float
    """What all workers together put in, headers included."""
    rounds_per_step: float
    fitting_slot_nbytes: int
    """Slots of this size hold what any worker gathers in a step, so that no transport needs a second round."""
    gather_s: dict[str, float]
    """Seconds to gather one step's objects on the slowest worker, median, by what gathered them."""


class JobFolder:
    """The folder's files: the job, the result, and what the workers write to their standard errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        """Where the launcher keeps its files."""
        self._job = path / "job.json"
        self._result = path / "result.json"

    def write_job(self, options: Options, train: Sequence[Pair], held_out: Sequence[Pair]) -> None:
        """Writes the options and the features of all texts, so that they are computed once."""
        content = {"options": asdict(options), "train": _bags(train), "held_out": _bags(held_out)}
        self._job.write_text(json.dumps(content))

    def read_job(self) -> tuple[Options, Bags, Bags]:
        """Returns (options, training pairs, held-out pairs)."""
        content = json.loads(self._job.read_text())
        return Options(**content["options"]), content["train"], content["held_out"]

    def write_result(self, result: Result) -> None:
        """(rank 0) Leaves the result for the command."""
        self._result.write_text(json.dumps(asdict(result)))

    def read_result(self) -> Result:
        """Returns what rank 0 has written."""
        return Result(**json.loads(self._result.read_text()))

    def read_stderr(self, local_rank: int) -> str:
        """Returns what a worker has written to its standard error."""
        return "".join(path.read_text(errors="replace") for path in self.logs.glob(f"*/*/{local_rank}/stderr.log"))


def _bags(pairs: Sequence[Pair]) -> Bags:
    return [(features(pair.question), features(pair.passage)) for pair in pairs]
