"""One run as a rank of it goes through it: open, measure, report. Where the ranks come from is not asked here."""

import os
import platform
import sys

import torch
import torch.distributed as dist

from gather_bench.bench.cases import opened_cases, titles
from gather_bench.bench.measure import run_cases
from gather_bench.bench.options import Options
from gather_bench.bench.payloads import payload
from gather_bench.bench.results import Environment, Report
from gather_bench.bench.wording import count
from gather_bench.peers import torch_all_gather_object
from gather_core import __version__


def run_job(options: Options) -> Report:
    """(all ranks of the default group) Measures what the options say; the report is the same on every rank."""
    payloads = {name: payload(name) for name in options.payloads}
    with opened_cases(options) as cases:
        ranks, rounds = count(dist.get_world_size(), "rank"), count(options.rounds, "round")
        _tell(f"{ranks}, {titles(cases)}, {rounds}")
        rows = run_cases(cases, payloads, rounds=options.rounds, calls=options.calls, tell=_tell)
    return Report(_environment(), options, tuple(rows))


def _tell(text: str) -> None:
    """Rank 0 says on standard error how far it is: a run takes a while."""
    if dist.get_rank() == 0:
        print(text, file=sys.stderr, flush=True)


def _environment() -> Environment:
    """(all ranks) Describes rank 0's process; hosts are counted, not named."""
    here = Environment(
        gather_core=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu_count=_cpu_count(),
        world_size=dist.get_world_size(),
        hosts=len(set(torch_all_gather_object(platform.node()))),
        backend=dist.get_backend_config(),
    )
    of_rank_0: Environment = torch_all_gather_object(here)[0]
    return of_rank_0


def _cpu_count() -> int:
    """CPUs that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
