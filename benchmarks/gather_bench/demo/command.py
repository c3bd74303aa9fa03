"""The command `gather demo`."""

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from gather_bench.demo.corpus import Pair, collect_pairs, split
from gather_bench.demo.job import JobFolder, Options, Result
from gather_bench.demo.launch import InterruptedBySignalError, WorkerFailedError, run_workers
from gather_bench.demo.report import agrees_with_one_process, count_workers, print_report

_BY_SIGNAL = 128
"""Shells add a signal's number to this in the exit status."""


def demo(
    workers: Annotated[int, typer.Option(min=1, help="Local workers.")] = 4,
    codec: Annotated[str, typer.Option(help="Codec spec, such as msgpack+zstd.")] = "pickle",
    transport: Annotated[str, typer.Option(help="Transport spec.")] = "auto",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training pairs.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs per worker and step.")] = 32,
    slot_nbytes: Annotated[int, typer.Option(min=1024, help="Slot size in bytes.")] = 16384,
) -> None:
    """Train a small dense retriever on local workers, gathering objects of all of them in every step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_by_signal)
    console = Console()
    options = Options(workers, codec, transport, slot_nbytes, epochs, batch_size)
    try:
        result = _run(console, options)
    except WorkerFailedError as exc:
        sys.exit(str(exc))
    except InterruptedBySignalError as exc:
        _exit_by_signal(exc.number)
    print_report(console, options, result)
    if not agrees_with_one_process(result):
        raise typer.Exit(1)


def _run(console: Console, options: Options) -> Result:
    with console.status("reading the standard library's docstrings"):
        train, held_out = split(collect_pairs())
    _check_batch(options, train)
    console.print(f"{len(train)} training pairs, {len(held_out)} held out; starting {count_workers(options.workers)}")
    with tempfile.TemporaryDirectory(prefix="gather-demo-") as path:
        folder = JobFolder(Path(path))
        folder.write_job(options, train, held_out)
        try:
            run_workers(options.workers, folder)
        finally:
            console.show_cursor()  # a worker that was drawing a progress bar when it was ended could not
        return folder.read_result()


def _check_batch(options: Options, train: list[Pair]) -> None:
    size = options.workers * options.batch_size
    if size > len(train):
        raise typer.BadParameter(f"{size} pairs per step on all workers, of {len(train)}", param_hint="--batch-size")


def _exit_by_signal(number: int, frame: Any = None) -> NoReturn:
    sys.exit(_BY_SIGNAL + number)
