"""The command `gather bench`: from the command line to a run, and from its report to table, file and exit status."""

import logging
import os
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
_UNREAD = _BY_SIGNAL + 13
"""As of a program that SIGPIPE has ended, because nobody reads what it writes any more."""
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
    int | None, typer.Option(min=1, help="Calls behind one barrier; default: what fills 30 ms, 2 to 50.")
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
    status = _run_in_job(options, ranks, json) if torchrun.is_job() else _run_locally(options, ranks, json)
    if status:
        raise typer.Exit(status)


def _distinct(given: list[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(given)) if given else default


def _run_locally(options: Options, ranks: int | None, json: Path | None) -> int:
    from gather_bench.bench.checks import find_problem

    if problem := find_problem(options, json):
        raise typer.BadParameter(problem)
    end_workers_on_signals()
    return publish(_run_workers(options, ranks or _DEFAULT_RANKS), json)


def end_workers_on_signals() -> None:
    """As an exception, which ends them; what is ignored, as SIGHUP under nohup, stays so."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit_by_signal)


def _exit_by_signal(number: int, frame: object) -> NoReturn:
    sys.exit(_BY_SIGNAL + number)


def _run_workers(options: Options, ranks: int) -> "Report":
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from gather_bench.bench.job import run_or_exit
    from gather_bench.local_ranks import NoResultError, run_local_ranks

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each worker that it ends
    try:
        report: Report = run_local_ranks(ranks, run_or_exit, options)
    except (ProcessExitedException, ProcessRaisedException, NoResultError) as exc:
        _fail(f"a worker failed: {_last_line(exc)}", _FAILED)
    return report


def _last_line(exc: Exception) -> str:
    """Torch puts the traceback of the worker before it."""
    return str(exc).strip().rpartition("\n")[2]


def _run_in_job(options: Options, ranks: int | None, json: Path | None) -> int:
    """(all ranks) What fails on one rank ends all of them with the same status; rank 0 alone says why."""
    if problem := torchrun.find_problem():
        _fail(problem, _REFUSED)
    try:
        with torchrun.default_group():
            return _run_in_group(options, ranks, json if torchrun.is_root() else None)
    except torchrun.JobError as exc:
        _fail(str(exc), _FAILED)


def _run_in_group(options: Options, ranks: int | None, json: Path | None) -> int:
    """(all ranks) The first to exit would have the launcher kill rank 0, so the others wait for what it says."""
    from gather_bench.bench.agreement import agree, largest
    from gather_bench.bench.checks import find_problem
    from gather_bench.bench.job import run_or_exit

    status = 0
    if problem := agree(_RANKS_IN_JOB if ranks is not None else find_problem(options, json)):
        status = _REFUSED
        if torchrun.is_root():
            typer.echo(f"Error: {problem}", err=True)
    else:
        report = run_or_exit(options)
        if torchrun.is_root():
            status = publish(report, json)
    return largest(status)


def publish(report: "Report", json: Path | None) -> int:
    """Writes the report, then prints it, so that it is kept where nobody reads to the end; returns the exit status."""
    problem = _write(report, json) if json is not None else None
    is_read = _print(report)
    if problem is None and not report.has_measured:
        problem = "nothing was measured"
    if problem is not None:
        typer.echo(f"Error: {problem}", err=True)
    if not is_read:
        return _UNREAD
    return 0 if report.is_sound and problem is None else _FAILED


def _write(report: "Report", json: Path) -> str | None:
    try:
        json.write_text(report.to_json(), encoding="utf-8")
    except OSError as exc:
        return f"--json {json}: {exc.strerror}"
    return None


def _print(report: "Report") -> bool:
    """Returns whether anybody reads it; where not, nothing is printed any more."""
    from rich.console import Console

    from gather_bench.bench.table import print_report

    console = Console()
    with console.capture() as captured:
        print_report(console, report)
    try:
        sys.stdout.write(captured.get())
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its end
        return False
    return True


def _fail(text: str, status: int) -> NoReturn:
    typer.echo(f"Error: {text}", err=True)
    raise typer.Exit(status)
