"""Progress of the training: a bar on a terminal, a line per epoch elsewhere."""

import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gather_bench.progress_bar import ProgressBar


class TrainingProgress(ProgressBar):
    """Shown by rank 0 only.

    Args:
        rank: This worker.
        epochs: How many there will be.
        steps_per_epoch: Steps in each.
    """

    def __init__(self, rank: int, epochs: int, steps_per_epoch: int) -> None:
        self._shown = rank == 0
        self._epochs = epochs
        self._num_steps = 0
        self._steps_per_epoch = steps_per_epoch
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, disable=not (self._shown and sys.stdout.isatty()))
        super().__init__(bar, epochs * steps_per_epoch)
        bar.update(self._task, description="training")

    def step(self, loss: float) -> None:
        """Counts one step."""
        self._num_steps += 1
        epoch = -(-self._num_steps // self._steps_per_epoch)
        text = f"epoch {epoch}/{self._epochs}, loss {loss:.3f}"
        self._bar.update(self._task, advance=1, description=text)
        if self._bar.disable and self._shown and self._num_steps % self._steps_per_epoch == 0:
            print(text, flush=True)
