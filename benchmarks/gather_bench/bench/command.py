"""The command `gather bench`: from the command line to a run, and from its report to table, file and exit status."""

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gather_bench.bench.launchers.find import find_job
from gather_bench.bench.launchers.job import Job, JobError
from gather_bench.bench.only_codecs.results import CodecOptions
from gather_bench.bench.only_codecs.run import run_only_codecs
from gather_bench.bench.options import Options
from gather_bench.bench.publishing import BY_SIGNAL, FAILED, REFUSED
from gather_bench.bench.recommendation import with_recommendation
from gather_bench.bench.results import Report
from gather_bench.model.cluster import Cluster
from gather_bench.model.options import ModelOptions
from gather_bench.report.outputs import Outputs, UnreadableError, read_report

_DEFAULT_RANKS = "2"
_MAX_RANKS = 256
_DEFAULTS = Options()
_CODEC_DEFAULTS = CodecOptions()
_CLUSTER = Cluster()
_RANKS_IN_JOB = "--ranks is for local workers: under torchrun, mpiexec and srun the ranks are those of the job"


_Ranks = Annotated[
    str | None,
    typer.Option(help="Local workers, such as 4, or 2,4,8 for one run after the other; default 2. Not in a job."),
]
_Codecs = Annotated[
    list[str] | None,
    typer.Option(help="Codec spec; repeatable. Default: pickle, msgpack; with --only-codecs all built-in ones."),
]
_Transports = Annotated[list[str] | None, typer.Option(help="Transport spec; repeatable. Default: auto.")]
_Payloads = Annotated[
    list[str] | None,
    typer.Option(
        help="metrics, dpr_step, predictions, tokens, dataframe, state_dict, images, config, bytes:SIZE, array:SIZE "
        "(such as 64KiB), or module:function, called with the rank; repeatable. Default: metrics, dpr_step, "
        "array:1MiB; with --only-codecs the first eight."
    ),
]
_SlotNbytes = Annotated[int, typer.Option(min=1024, help="Slot size in bytes.")]
_Rounds = Annotated[int, typer.Option(min=1, help="Counted rounds; one more warms up.")]
_Calls = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Calls behind one barrier; default: what fills 30 ms, 2 to 50. With --only-codecs calls in a row; "
        "default: what fills 20 ms, 1 to 5000.",
    ),
]
_Peers = Annotated[bool, typer.Option(help="Also measure what gather-core replaces.")]
_REPORTS = "Reports"
_Json = Annotated[Path | None, typer.Option(help="Write all that was measured.", rich_help_panel=_REPORTS)]
_Html = Annotated[Path | None, typer.Option(help="Write a page with drawings.", rich_help_panel=_REPORTS)]
_Csv = Annotated[Path | None, typer.Option(help="Write a line per row.", rich_help_panel=_REPORTS)]
_Settings = Annotated[
    Path | None, typer.Option(help="Write what is recommended, as a settings file.", rich_help_panel=_REPORTS)
]
_Compare = Annotated[
    Path | None,
    typer.Option(help="Say what is slower or faster than in this file of --json.", rich_help_panel=_REPORTS),
]
_FailOnSlower = Annotated[
    bool, typer.Option("--fail-on-slower", help="With --compare: exit with 1 if so.", rich_help_panel=_REPORTS)
]
_From = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        help="Measure nothing: take this file of --json. Repeatable with --model, which takes their points together.",
        rich_help_panel=_REPORTS,
    ),
]
_MODEL = "Cost model"
_Model = Annotated[
    bool,
    typer.Option(
        "--model",
        help="Fit a cost model to what was measured with up to 4 ranks, check it on the rest, and predict up to 8,192 "
        "ranks, as with --ranks 1,2,3,4,8,16.",
        rich_help_panel=_MODEL,
    ),
]
_RanksPerHost = Annotated[int, typer.Option(min=1, help="Of the hosts in predictions.", rich_help_panel=_MODEL)]
_LatencyUs = Annotated[float, typer.Option(min=0, help="Between those hosts.", rich_help_panel=_MODEL)]
_GbitPerS = Annotated[float, typer.Option(min=0.001, help="Of each of those hosts.", rich_help_panel=_MODEL)]
_OnlyCodecs = Annotated[
    bool, typer.Option("--only-codecs", help="Measure encode and decode in this process: no ranks, no transport.")
]
_Markdown = Annotated[
    Path | None,
    typer.Option(help="With --only-codecs or --model: also put its tables between the markers of this page."),
]


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
    html: _Html = None,
    csv: _Csv = None,
    settings: _Settings = None,
    compare: _Compare = None,
    fail_on_slower: _FailOnSlower = False,
    saved: _From = None,
    model: _Model = False,
    model_ranks_per_host: _RanksPerHost = _CLUSTER.ranks_per_host,
    model_latency_us: _LatencyUs = _CLUSTER.latency_us,
    model_gbit_per_s: _GbitPerS = _CLUSTER.gbit_per_s,
    only_codecs: _OnlyCodecs = False,
    markdown: _Markdown = None,
) -> None:
    """Measure codecs and transports on local workers or a launched job's ranks, beside what they replace."""
    defaults = _CODEC_DEFAULTS if only_codecs else _DEFAULTS
    options = Options(
        codecs=_distinct(codec, defaults.codecs),
        transports=_distinct(transport, () if only_codecs else _DEFAULTS.transports),
        payloads=_distinct(payload, defaults.payloads),
        slot_nbytes=slot_nbytes,
        rounds=rounds,
        calls=calls,
        peers=peers,
    )
    outputs = Outputs(json, html, csv, settings, compare, fail_on_slower)
    if model and only_codecs:
        raise typer.BadParameter("--model is about ranks, and means nothing with --only-codecs")
    if model:
        cluster = Cluster(model_ranks_per_host, model_latency_us, model_gbit_per_s)
        outputs = replace(outputs, model=ModelOptions(cluster, markdown=markdown))
    elif markdown is not None and not only_codecs:
        raise typer.BadParameter("--markdown goes with --only-codecs or --model")
    if saved:
        status = _show_saved(saved, outputs, is_measuring=bool(ranks or codec or transport or payload or only_codecs))
    elif only_codecs:
        status = _run_codecs(options, ranks, outputs, markdown)
    else:
        status = _run(options, ranks, outputs)
    if status:
        raise typer.Exit(status)


def _show_saved(saved: Sequence[Path], outputs: Outputs, *, is_measuring: bool) -> int:
    from gather_bench.bench.checks import unwritable

    if is_measuring:
        raise typer.BadParameter("--from takes what was measured already: leave out what says what to measure")
    if len(saved) > 1 and outputs.model is None:
        raise typer.BadParameter("several files of --from go with --model")
    problem = next(unwritable(outputs.paths), None) or outputs.find_problem()
    if problem is not None:
        raise typer.BadParameter(problem)
    try:
        report, *further = map(read_report, saved)
    except UnreadableError as exc:
        raise typer.BadParameter(f"--from {exc}") from exc
    if outputs.model is not None:
        outputs = replace(outputs, model=replace(outputs.model, further=tuple(further)))
    return outputs.publish(report)


def _run_codecs(options: Options, ranks: str | None, outputs: Outputs, markdown: Path | None) -> int:
    given = {
        "--ranks": ranks is not None,
        "--transport": bool(options.transports),
        "--slot-nbytes": options.slot_nbytes != _DEFAULTS.slot_nbytes,
    }
    if surplus := [option for option, is_given in given.items() if is_given]:
        raise typer.BadParameter(f"{surplus[0]} means nothing with --only-codecs, where no ranks exchange anything")
    if outputs != Outputs(outputs.json):
        raise typer.BadParameter("with --only-codecs a report is a file of --json or --markdown")
    return run_only_codecs(
        CodecOptions(options.codecs, options.payloads, options.rounds, options.calls, options.peers),
        outputs.json,
        markdown,
    )


def _run(options: Options, ranks: str | None, outputs: Outputs) -> int:
    try:
        job = find_job()
    except JobError as exc:
        _fail(str(exc), REFUSED)
    return _run_in_job(job, options, ranks, outputs) if job else _run_locally(options, ranks, outputs)


def _distinct(given: list[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(given)) if given else default


def _run_locally(options: Options, ranks: str | None, outputs: Outputs) -> int:
    from gather_bench.bench.checks import find_problem

    if problem := find_problem(options, outputs.paths) or outputs.find_problem():
        raise typer.BadParameter(problem)
    world_sizes = _world_sizes(ranks or _DEFAULT_RANKS)
    end_workers_on_signals()
    reports = [_run_workers(options, world_size) for world_size in world_sizes]
    return outputs.publish(with_recommendation(reduce(Report.joined_by, reports)))


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


def _run_workers(options: Options, ranks: int) -> Report:
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from gather_bench.bench.job import run_or_exit
    from gather_bench.local_ranks import NoResultError, run_local_ranks

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each worker that it ends
    try:
        report: Report = run_local_ranks(ranks, run_or_exit, options)
    except (ProcessExitedException, ProcessRaisedException, NoResultError) as exc:
        _fail(f"a worker failed: {_last_line(exc)}", FAILED)
    return report


def _last_line(exc: Exception) -> str:
    """Torch puts the traceback of the worker before it."""
    return str(exc).strip().rpartition("\n")[2]


def _run_in_job(job: Job, options: Options, ranks: str | None, outputs: Outputs) -> int:
    """(all ranks) What fails on one rank ends all of them with the same status; rank 0 alone says why."""
    try:
        with job.default_group():
            return _run_in_group(job, options, ranks, outputs if job.is_root else Outputs())
    except JobError as exc:
        typer.echo(f"Error: {exc}", err=True)
        job.end_others(FAILED)
        raise typer.Exit(FAILED) from exc
    except SystemExit:
        job.end_others(FAILED)
        raise


def _run_in_group(job: Job, options: Options, ranks: str | None, outputs: Outputs) -> int:
    """(all ranks) The first to exit would have the launcher kill rank 0, so the others wait for what it says."""
    from gather_bench.bench.agreement import agree, largest
    from gather_bench.bench.checks import find_problem
    from gather_bench.bench.job import run_or_exit

    status = 0
    own_problem = find_problem(options, outputs.paths) or outputs.find_problem()
    if problem := agree(_RANKS_IN_JOB if ranks is not None else own_problem):
        status = REFUSED
        if job.is_root:
            typer.echo(f"Error: {problem}", err=True)
    else:
        report = run_or_exit(options, job.started_by)
        if job.is_root:
            status = outputs.publish(with_recommendation(report))
    return largest(status)


def _fail(text: str, status: int) -> NoReturn:
    typer.echo(f"Error: {text}", err=True)
    raise typer.Exit(status)
