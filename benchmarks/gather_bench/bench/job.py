"""One run as a rank of it goes through it: open, measure, report. Where the ranks come from is not asked here."""

import platform
import sys
from contextlib import suppress
from datetime import date

import torch
import torch.distributed as dist

from gather_bench.bench.agreement import in_one_line
from gather_bench.bench.cases import opened_cases, titles
from gather_bench.bench.cpus import cpu_count, cpu_model, threads_per_core
from gather_bench.bench.measure import run_cases
from gather_bench.bench.options import Options
from gather_bench.bench.payloads import payload
from gather_bench.bench.place import Place
from gather_bench.bench.progress import RunProgress
from gather_bench.bench.results import Environment, Report, StartedBy
from gather_bench.bench.wording import count
from gather_bench.peers import torch_all_gather_object
from gather_core import __version__

_FAILED = 1
_INTERRUPTED = 130
"""As shells have it for a process that SIGINT has ended."""


def run_job(options: Options, started_by: StartedBy = "local") -> Report:
    """(all ranks of the default group) Measures what the options say; the report is the same on every rank."""
    payloads = {name: payload(name) for name in options.payloads}
    is_root = dist.get_rank() == 0
    with (
        opened_cases(options, started_by) as cases,
        RunProgress(is_root, len(payloads), options.rounds + 1) as progress,
    ):
        ranks, rounds = count(dist.get_world_size(), "rank"), count(options.rounds, "round")
        progress.say(f"{ranks}, {titles(cases)}, {rounds}")
        rows = run_cases(cases, payloads, rounds=options.rounds, calls=options.calls, progress=progress)
    return Report(_environment(started_by), options, tuple(rows))


def run_or_exit(options: Options, started_by: StartedBy = "local") -> Report:
    """(all ranks) `run_job` for a process that is there for nothing else: it ends with a line on standard error.

    Raises:
        SystemExit: A way failed while the clock ran, having worked before, or this process was interrupted.
    """
    rank = dist.get_rank()
    try:
        return run_job(options, started_by)
    except KeyboardInterrupt:
        _say(f"Error: rank {rank} was interrupted")
        sys.exit(_INTERRUPTED)
    except Exception as exc:
        _say(f"Error: rank {rank}: {in_one_line(exc)}")
        sys.exit(_FAILED)


def _say(text: str) -> None:
    """On standard error; that nobody reads it is no reason to end a run."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _environment(started_by: StartedBy) -> Environment:
    """(all ranks) Describes rank 0's process; hosts are counted, not named."""
    place = Place.find()
    here = Environment(
        gather_core=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu_model=cpu_model(),
        cpu_count=cpu_count(),
        world_sizes=(place.world_size,),
        hosts=place.hosts,
        backend=dist.get_backend_config(),
        launcher=started_by,
        date=date.today().isoformat(),
        threads_per_core=threads_per_core(),
    )
    of_rank_0: Environment = torch_all_gather_object(here)[0]
    return of_rank_0
