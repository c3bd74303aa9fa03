"""The command `gather bench`: from the command line to a run, and from its report to table, file and exit status."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gather_bench.bench import torchrun
from gather_bench.bench.options import Options

if TYPE_CHECKING:
    from gather_bench.bench.results import Report

_DEFAULT_RANKS = 2
_MAX_RANKS = 256
_FAILED = 1
_REFUSED = 2
_BY_SIGNAL = 128
"""Shells add a signal's number to this in the exit status."""
_DEFAULTS = Options()
_RANKS_IN_JOB = "--ranks is for local workers: under torchrun the ranks are the job's, as --nproc-per-node says"


_Ranks = Annotated[
    int | None, typer.Option(min=1, max=_MAX_RANKS, help="Local workers; default 2. Not under torchrun.")
]
_Codecs = Annotated[list[str] | None, typer.Option(help="Codec spec; repeatable. Default: pickle, msgpack.")]
_Transports = Annotated[list[str] | None, typer.Option(help="Transport spec; repeatable. Default: auto.")]
_Payloads = Annotated[
    list[str] | None,
    typer.Option(
        help="metrics, dpr_step, bytes:SIZE, array:SIZE (such as 64KiB), or module:function, called with the rank; "
        "repeatable. Default: metrics, dpr_step, array:1MiB."
    ),
]
_SlotNbytes = Annotated[int, typer.Option(min=1024, help="Slot size in bytes.")]
_Rounds = Annotated[int, typer.Option(min=1, help="Counted rounds; one more warms up.")]
_Calls = Annotated[
    int | None, typer.Option(min=1, help="Calls behind one barrier; default: what fills 30 ms, at most 50.")
]
_Peers = Annotated[bool, typer.Option(help="Also measure what gather-core replaces.")]
_Json = Annotated[Path | None, typer.Option(help="Also write the report to this file.")]


def bench(
    ranks: _Ranks = None,
    codec: _Codecs = None,
    transport: _Transports = None,
    payload: _Payloads = None,
    slot_nbytes: _SlotNbytes = _DEFAULTS.slot_nbytes,
    rounds: _Rounds = _DEFAULTS.rounds,
    calls: _Calls = None,
    peers: _Peers = _DEFAULTS.peers,
    json: _Json = None,
) -> None:
    """Measure codecs and transports on local workers, or on the ranks of torchrun, beside what they replace."""
    options = Options(
        codecs=_distinct(codec, _DEFAULTS.codecs),
        transports=_distinct(transport, _DEFAULTS.transports),
        payloads=_distinct(payload, _DEFAULTS.payloads),
        slot_nbytes=slot_nbytes,
        rounds=rounds,
        calls=calls,
        peers=peers,
    )
    if torchrun.is_job():
        report = _run_in_job(options, ranks, json)
    else:
        report = _run_locally(options, ranks or _DEFAULT_RANKS, json)
    if not report.is_sound:
        raise typer.Exit(_FAILED)


def _distinct(given: list[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(given)) if given else default


def _run_locally(options: Options, ranks: int, json: Path | None) -> "Report":
    from gather_bench.bench.checks import find_problem

    if problem := find_problem(options, json):
        raise typer.BadParameter(problem)
    signal.signal(signal.SIGTERM, _exit_by_signal)
    report = _run_workers(options, ranks)
    if problem := _publish(report, json):
        _fail(problem)
    return report


def _exit_by_signal(number: int, frame: object) -> NoReturn:
    """As an exception, so that the workers are ended."""
    sys.exit(_BY_SIGNAL + number)


def _run_workers(options: Options, ranks: int) -> "Report":
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from gather_bench.bench.job import run_job
    from gather_bench.local_ranks import run_local_ranks

    try:
        report: Report = run_local_ranks(ranks, run_job, options)
    except (ProcessExitedException, ProcessRaisedException) as exc:
        _fail(f"a worker failed: {str(exc).strip()}")
    return report


def _run_in_job(options: Options, ranks: int | None, json: Path | None) -> "Report":
    """(all ranks) What fails on one rank ends all of them with the same status; rank 0 alone says why."""
    with torchrun.default_group():
        from gather_bench.bench.agreement import agree
        from gather_bench.bench.checks import find_problem
        from gather_bench.bench.job import run_job

        path = json if torchrun.is_root() else None
        if problem := agree(_RANKS_IN_JOB if ranks is not None else find_problem(options, path)):
            _end_job(problem, _REFUSED)
        report = run_job(options)
        if problem := agree(_publish(report, path) if torchrun.is_root() else None):
            _end_job(problem, _FAILED)
    return report


def _end_job(text: str, status: int) -> NoReturn:
    """(all ranks) The first to exit would have the launcher kill rank 0, so the others wait for what it says."""
    from gather_bench.bench.agreement import agree

    if torchrun.is_root():
        typer.echo(f"Error: {text}", err=True)
    agree(None)
    raise typer.Exit(status)


def _publish(report: "Report", json: Path | None) -> str | None:
    """Prints the report and writes it; returns why it could not be written."""
    from rich.console import Console

    from gather_bench.bench.table import print_report

    print_report(Console(), report)
    try:
        if json is not None:
            json.write_text(report.to_json(), encoding="utf-8")
    except OSError as exc:
        return f"--json {json}: {exc.strerror}"
    return None


def _fail(text: str) -> NoReturn:
    typer.echo(f"Error: {text}", err=True)
    raise typer.Exit(_FAILED)
