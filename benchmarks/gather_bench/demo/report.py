"""The result as tables."""

from rich.console import Console
from rich.table import Column, Table

from gather_bench.demo.job import Options, Result

_RELATIVE_TOLERANCE = 1e-5
"""Losses and gradients are float32 sums in another order."""


def agrees_with_one_process(result: Result) -> bool:
    """Whether loss and gradient of all workers are those of one process, to float tolerance."""
    return (
        result.loss_difference <= _RELATIVE_TOLERANCE
        and result.largest_gradient > 0
        and result.gradient_difference <= _RELATIVE_TOLERANCE * result.largest_gradient
    )


def print_report(console: Console, options: Options, result: Result) -> None:
    """Prints what was learnt, whether it is right, what was gathered and how long that took."""
    console.print(result.description, highlight=False, soft_wrap=True)  # one line, however long
    console.print(_training(options, result))
    console.print(_gathering(options, result))
    console.print(_times(result))
    workers = count_workers(options.workers)
    if agrees_with_one_process(result):
        console.print(f"{workers} and 1 process agree on loss and gradient", style="green", highlight=False)
    else:
        console.print(f"{workers} and 1 process DISAGREE on loss or gradient", style="bold red", highlight=False)


def count_workers(number: int) -> str:
    """Says "1 worker" or "4 workers"."""
    return f"{number} worker" if number == 1 else f"{number} workers"


def _training(options: Options, result: Result) -> Table:
    table = Table("training", "")
    table.add_row("recall@10, held out, before", f"{result.recall_before:.1%}")
    table.add_row("recall@10, held out, after", f"{result.recall_after:.1%}")
    table.add_row("epochs, time", f"{options.epochs}, {result.train_s:.1f} s")
    table.add_row(f"loss: {count_workers(options.workers)} less 1 process", f"{result.loss_difference:.1e}")
    gradient = f"{result.gradient_difference:.1e}, of elements up to {result.largest_gradient:.1e}"
    table.add_row("summed gradient, likewise", gradient)
    return table


def _gathering(options: Options, result: Result) -> Table:
    table = Table("gathering", "")
    table.add_row("bytes per step, all workers together", f"{result.nbytes_per_step:,.0f}")
    table.add_row("rounds per step", f"{result.rounds_per_step:.2f}")
    if result.fitting_slot_nbytes > options.slot_nbytes:
        saves = "saves the second round" if result.rounds_per_step > 1 else "holds a step; not needed by this transport"
        table.add_row(f"--slot-nbytes {result.fitting_slot_nbytes}", saves)
    return table


def _times(result: Result) -> Table:
    table = Table(Column("one step's gather by", overflow="fold"), "median, slowest worker", "times the first")
    ours = next(iter(result.gather_s.values()))
    for name, seconds in result.gather_s.items():
        table.add_row(name, f"{seconds * 1e3:.2f} ms", f"{seconds / ours:.1f}")
    return table
