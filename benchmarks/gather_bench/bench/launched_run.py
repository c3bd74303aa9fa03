"""A run on the ranks of a job that a launcher has started."""

import os
from typing import TYPE_CHECKING

import typer

from gather_bench.bench.launchers.job import Job, JobError
from gather_bench.bench.local_workers import LocalWorkers
from gather_bench.bench.options import Options
from gather_bench.bench.publishing import FAILED, REFUSED
from gather_bench.bench.recommendation import with_recommendation

if TYPE_CHECKING:
    from gather_bench.report.outputs import Outputs


def run_in_job(job: Job, options: Options, workers: LocalWorkers, outputs: "Outputs") -> int:
    """(all ranks) What fails on one rank ends all of them with the same status; rank 0 alone says why."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else a lost rank is a stack of torch's on all others
    try:
        with job.default_group():
            return _run_in_group(job, options, workers, outputs)
    except JobError as exc:
        typer.echo(f"Error: {exc}", err=True)
        job.end_others(FAILED)
        raise typer.Exit(FAILED) from exc
    except SystemExit:
        job.end_others(FAILED)
        raise


def _run_in_group(job: Job, options: Options, workers: LocalWorkers, outputs: "Outputs") -> int:
    """(all ranks) The first to exit would have the launcher kill rank 0, so the others wait for what it says."""
    from gather_bench.bench.agreement import agree, largest
    from gather_bench.bench.checks import find_problem
    from gather_bench.bench.job import run_or_exit

    status = 0
    own_problem = workers.surplus
    if own_problem is None:
        own_problem = find_problem(options, outputs.paths if job.is_root else {})
        if job.is_root:
            own_problem = own_problem or outputs.find_problem()
    if problem := agree(own_problem):
        status = REFUSED
        if job.is_root:
            typer.echo(f"Error: {problem}", err=True)
    else:
        report = run_or_exit(options, job.started_by)
        if job.is_root:
            status = outputs.publish(with_recommendation(report))
    return largest(status)
