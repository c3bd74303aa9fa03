"""The command: start the workers through torch's elastic launcher, show the result."""

import dataclasses
import json
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gather_bench.demo.corpus import collect_pairs, split
from gather_bench.demo.training import DemoOptions, DemoResult, work

_SAME_TO = 1e-5
"""Losses and gradients are float32 sums in another order."""


def demo(
    workers: Annotated[int, typer.Option(min=1, help="Local workers.")] = 4,
    codec: Annotated[str, typer.Option(help="Codec spec, such as msgpack+zstd.")] = "pickle",
    transport: Annotated[str, typer.Option(help="Transport spec.")] = "auto",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training pairs.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs per worker and step.")] = 32,
    slot_nbytes: Annotated[int, typer.Option(min=1024, help="Slot size in bytes.")] = 16384,
) -> None:
    """Train a small dense retriever on local workers, gathering objects of all of them in every step."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console()
    with console.status("reading the standard library's docstrings"):
        train, held_out = split(collect_pairs())
    console.print(f"{len(train)} training pairs, {len(held_out)} held out; starting {workers} workers")
    with tempfile.TemporaryDirectory(prefix="gather-demo-") as folder:
        corpus = Path(folder) / "corpus.json"
        pairs = {"train": train, "held_out": held_out}
        texts = {name: [dataclasses.astuple(pair) for pair in part] for name, part in pairs.items()}
        corpus.write_text(json.dumps(texts))
        result = _launch(workers, DemoOptions(str(corpus), codec, transport, slot_nbytes, epochs, batch_size))
    _show(console, result, workers)
    if max(result.loss_difference, result.gradient_difference) > _SAME_TO:
        console.print("[red]the workers' loss or gradient differs from one process's[/red]")
        raise typer.Exit(1)


def _launch(workers: int, options: DemoOptions) -> DemoResult:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    try:
        results = elastic_launch(config, work)(options)
    except (SignalException, KeyboardInterrupt):
        sys.exit(130)
    except ChildFailedError as exc:
        rank, failure = exc.get_first_failure()
        sys.exit(f"worker {rank} failed: {failure.message}")
    result = results[0]
    if not isinstance(result, DemoResult):
        sys.exit("worker 0 returned no result")
    return result


def _show(console: Console, result: DemoResult, workers: int) -> None:
    console.print(f"rank 0 said: {result.transport}", highlight=False)
    table = Table("what", "value", title="gather demo")
    table.add_row("recall@10 before training", f"{result.recall_before:.1%}")
    table.add_row("recall@10 after training", f"{result.recall_after:.1%}")
    table.add_row(f"loss, {workers} workers against 1 process", f"differs by {result.loss_difference:.1e}")
    table.add_row(
        f"gradient, {workers} workers against 1 process", f"differs by at most {result.gradient_difference:.1e}"
    )
    table.add_row("gathered per step", f"{result.nbytes_per_step / 1024:.1f} KiB")
    table.add_row("operations with a second round", f"{result.second_rounds} of {result.operations}")
    if result.second_rounds:
        table.add_row("slot size that would have saved it", f"--slot-nbytes {result.slot_nbytes_needed}")
    console.print(table)
    times = Table("gathering one step", "median, slowest worker", "times gather-core's", title="in the same run")
    ours = result.seconds["gather-core"]
    for name, seconds in result.seconds.items():
        times.add_row(name, f"{seconds * 1e3:.2f} ms", f"{seconds / ours:.1f}")
    console.print(times)
