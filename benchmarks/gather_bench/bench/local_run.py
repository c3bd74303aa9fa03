"""A run on workers that the command starts on this machine."""

import logging
import math
import signal
import sys
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, NoReturn

import typer

from gather_bench.bench.local_workers import LocalWorkers
from gather_bench.bench.options import Options
from gather_bench.bench.publishing import BY_SIGNAL, FAILED
from gather_bench.bench.recommendation import with_recommendation
from gather_bench.bench.results import Report

if TYPE_CHECKING:
    from gather_bench.report.outputs import Outputs

_DEFAULT_RANKS = "2"
_MAX_RANKS = 256


def run_locally(options: Options, workers: LocalWorkers, outputs: "Outputs") -> int:
    """Measures with each number of ranks in turn, and publishes one report; returns the exit status.

    Where it is not said how often workers are started, it is as often as for the report to compare with, else once.

    Raises:
        typer.BadParameter: An option is wrong; nothing was started.
        typer.Exit: A worker failed.
    """
    from gather_bench.bench.checks import find_problem

    if problem := find_problem(options, outputs.paths) or outputs.find_problem():
        raise typer.BadParameter(problem)
    world_sizes = _world_sizes(workers.ranks or _DEFAULT_RANKS)
    if workers.launches is not None and options.rounds < workers.launches:
        raise typer.BadParameter(
            f"--launches {workers.launches}: each runs a round at least, and there are {options.rounds}: give --rounds"
        )
    options = _in_equal_launches(options, workers.launches or outputs.old_launches or options.launches)
    end_workers_on_signals()
    reports = [_run_launches(options, world_size) for world_size in world_sizes]
    return outputs.publish(with_recommendation(reduce(Report.joined_by, reports)))


def _in_equal_launches(options: Options, launches: int) -> Options:
    """With as many rounds as are run: each launch has equally many."""
    return replace(options, rounds=math.ceil(options.rounds / launches) * launches, launches=launches)


def _world_sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(1 <= size <= _MAX_RANKS for size in sizes):
        raise typer.BadParameter(f"--ranks {text}: not a number from 1 to {_MAX_RANKS}, or several such as 2,4,8")
    return list(dict.fromkeys(sizes))


def end_workers_on_signals() -> None:
    """As an exception, which ends them; what is ignored, as SIGHUP under nohup, stays so."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit_by_signal)


def _exit_by_signal(number: int, frame: object) -> NoReturn:
    sys.exit(BY_SIGNAL + number)


def _run_launches(options: Options, ranks: int) -> Report:
    """Starts workers anew for each launch, so that one differs from another as one run does from another."""
    from gather_bench.bench.launches import pooled

    part = replace(options, rounds=options.rounds // options.launches)
    reports = []
    for number in range(1, options.launches + 1):
        if options.launches > 1:
            typer.echo(f"launch {number} of {options.launches}", err=True)
        reports.append(_run_workers(part, ranks))
    return pooled(reports, options)


def _run_workers(options: Options, ranks: int) -> Report:
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from gather_bench.bench.job import run_or_exit
    from gather_bench.bench.progress import show_cursor
    from gather_bench.local_ranks import NoResultError, run_local_ranks

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each worker that it ends
    try:
        report: Report = run_local_ranks(ranks, run_or_exit, options)
    except (ProcessExitedException, ProcessRaisedException, NoResultError) as exc:
        typer.echo(f"Error: a worker failed: {_last_line(exc)}", err=True)
        raise typer.Exit(FAILED) from exc
    finally:
        show_cursor()
    return report


def _last_line(exc: Exception) -> str:
    """Torch puts the traceback of the worker before it."""
    return str(exc).strip().rpartition("\n")[2]
