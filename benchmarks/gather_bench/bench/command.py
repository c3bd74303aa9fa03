"""The command `gather bench`: from the command line to a run, and from its report to table, files and exit status."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from gather_bench.bench import arguments
from gather_bench.bench.given import given_options
from gather_bench.bench.launched_run import run_in_job
from gather_bench.bench.launchers.find import find_job, is_beside_root
from gather_bench.bench.launchers.job import JobError
from gather_bench.bench.local_run import run_locally
from gather_bench.bench.local_workers import LocalWorkers
from gather_bench.bench.only_codecs.results import CodecOptions
from gather_bench.bench.only_codecs.run import run_only_codecs
from gather_bench.bench.options import QUICK, Options
from gather_bench.bench.publishing import REFUSED
from gather_bench.model.cluster import Cluster
from gather_bench.model.options import ModelOptions
from gather_bench.report.outputs import Outputs, UnreadableError, read_report

_DEFAULTS = Options()
_CODEC_DEFAULTS = CodecOptions()
_CLUSTER = Cluster()
_OF_RANKS = frozenset({"--ranks", "--launches", "--transport", "--slot-nbytes"})
_OF_A_RUN = _OF_RANKS | {
    *("--codec", "--payload", "--peers", "--no-peers", "--quick", "--rounds", "--calls", "--only-codecs"),
}
"""All that says what to measure and how."""


def bench(
    context: typer.Context,
    ranks: arguments.Ranks = None,
    codec: arguments.Codecs = None,
    transport: arguments.Transports = None,
    payload: arguments.Payloads = None,
    peers: arguments.Peers = _DEFAULTS.peers,
    quick: arguments.Quick = False,
    slot_nbytes: arguments.SlotNbytes = _DEFAULTS.slot_nbytes,
    rounds: arguments.Rounds = None,
    calls: arguments.Calls = None,
    launches: arguments.Launches = None,
    json: arguments.Json = None,
    html: arguments.Html = None,
    csv: arguments.Csv = None,
    settings: arguments.Settings = None,
    compare: arguments.Compare = None,
    fail_on_slower: arguments.FailOnSlower = False,
    saved: arguments.From = None,
    model: arguments.Model = False,
    model_ranks_per_host: arguments.RanksPerHost = _CLUSTER.ranks_per_host,
    model_latency_us: arguments.LatencyUs = _CLUSTER.latency_us,
    model_gbit_per_s: arguments.GbitPerS = _CLUSTER.gbit_per_s,
    model_threads_per_core: arguments.ThreadsPerCore = None,
    only_codecs: arguments.OnlyCodecs = False,
    markdown: arguments.Markdown = None,
) -> None:
    """Measure codecs and transports on local workers or a launched job's ranks, beside what they replace."""
    if (saved or only_codecs) and is_beside_root():
        return
    given = given_options(context)
    if quick and only_codecs:
        raise typer.BadParameter("--quick is about ranks, and means nothing with --only-codecs")
    defaults = _CODEC_DEFAULTS if only_codecs else QUICK if quick else _DEFAULTS
    options = Options(
        codecs=_distinct(codec, defaults.codecs),
        transports=_distinct(transport, () if only_codecs else _DEFAULTS.transports),
        payloads=_distinct(payload, defaults.payloads),
        slot_nbytes=slot_nbytes,
        rounds=rounds or defaults.rounds,
        calls=calls,
        peers=peers,
    )
    outputs = Outputs(json, html, csv, settings, compare, fail_on_slower)
    if model and only_codecs:
        raise typer.BadParameter("--model is about ranks, and means nothing with --only-codecs")
    if model:
        cluster = Cluster(model_ranks_per_host, model_latency_us, model_gbit_per_s)
        outputs = replace(
            outputs, model=ModelOptions(cluster, threads_per_core=model_threads_per_core, markdown=markdown)
        )
    elif markdown is not None and not only_codecs:
        raise typer.BadParameter("--markdown goes with --only-codecs or --model")
    elif surplus := [option for option in given if option.startswith("--model-")]:
        raise typer.BadParameter(f"{surplus[0]} goes with --model")
    if saved:
        status = _show_saved(saved, outputs, given)
    elif only_codecs:
        status = _run_codecs(options, outputs, markdown, given)
    else:
        status = _run(options, LocalWorkers(ranks, launches), outputs)
    if status:
        raise typer.Exit(status)


def _show_saved(saved: Sequence[Path], outputs: Outputs, given: Sequence[str]) -> int:
    from gather_bench.bench.checks import unusable

    if surplus := [option for option in given if option in _OF_A_RUN]:
        raise typer.BadParameter(
            f"--from takes what was measured already: leave out what says what to measure, {', '.join(surplus)}"
        )
    if len(saved) > 1 and outputs.model is None:
        raise typer.BadParameter("several files of --from go with --model")
    problem = next(unusable(outputs.paths), None) or outputs.find_problem()
    if problem is not None:
        raise typer.BadParameter(problem)
    try:
        report, *further = map(read_report, saved)
    except UnreadableError as exc:
        raise typer.BadParameter(f"--from {exc}") from exc
    if outputs.model is not None:
        outputs = replace(outputs, model=replace(outputs.model, further=tuple(further)))
    return outputs.publish(report)


def _run_codecs(options: Options, outputs: Outputs, markdown: Path | None, given: Sequence[str]) -> int:
    if surplus := [option for option in given if option in _OF_RANKS]:
        raise typer.BadParameter(f"{surplus[0]} means nothing with --only-codecs, where no ranks exchange anything")
    if outputs != Outputs(outputs.json):
        raise typer.BadParameter("with --only-codecs a report is a file of --json or --markdown")
    return run_only_codecs(
        CodecOptions(options.codecs, options.payloads, options.rounds, options.calls, options.peers),
        outputs.json,
        markdown,
    )


def _run(options: Options, workers: LocalWorkers, outputs: Outputs) -> int:
    try:
        job = find_job()
    except JobError as exc:
        typer.echo(f"Error: {exc}", err=True)
        raise typer.Exit(REFUSED) from exc
    return run_in_job(job, options, workers, outputs) if job else run_locally(options, workers, outputs)


def _distinct(given: list[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(given)) if given else default
