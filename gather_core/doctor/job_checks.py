"""What the facts of all known ranks mean together: who is on which host, and in what ranks differ.

Each check is a pure function from rank -> facts to findings. Some ranks may be missing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from gather_core.doctor.facts import Facts
from gather_core.doctor.findings import Finding, Level
from gather_core.errors import format_ranks

K = TypeVar("K")
Job = Mapping[int, Facts]
"""Rank -> its facts."""

_MUST_AGREE = ("CODEC", "LIMITS", "OVERFLOW", "PAYLOAD_CHECKSUM", "SLOT_NBYTES", "TRANSPORT", "WIRE")
"""What round 0 compares, as beginnings of variables behind `GATHER_`."""
_MAY_DIFFER = "GATHER_HOST_ID"


def spans_networks(job: Job) -> bool | None:
    """Whether the loopback address of some rank leads to other ranks nowhere; None where nobody knows."""
    networks = {facts.host.network for facts in job.values()}
    if len(networks - {None}) > 1:
        return True
    launch = next(iter(job.values())).launch
    if None not in networks and len(job) == launch.world_size > 1:
        return False
    if launch.by == "nobody" or launch.local_ranks is None:
        return None
    return launch.world_size > launch.local_ranks


def check_hosts(job: Job) -> Iterator[Finding]:
    """Says who is on which host, and whether ranks of one host share memory."""
    by_host = _ranks_by(job, lambda facts: facts.host.kernel)
    if len(job) == 1 or None in by_host:
        return
    shown = "; ".join(f"host {number}: {format_ranks(ranks)}" for number, ranks in enumerate(by_host.values()))
    yield Finding("ok", "hosts", shown)
    for ranks in by_host.values():
        apart = _ranks_by({rank: job[rank] for rank in ranks}, lambda facts: facts.host.memory)
        if len(apart) > 1:
            what = f"{' and '.join(map(format_ranks, apart.values()))} are on one host, but cannot share memory"
            mend = "run them as one user in one container, or with --ipc=host --pid=host --network=host"
            yield Finding("slow", "hosts", what, mend, tuple(sorted(ranks)))


def check_cores(job: Job) -> Iterator[Finding]:
    """Whether each rank of a host has a core, and its threads too."""
    for ranks in _ranks_by(job, lambda facts: facts.host.kernel).values():
        yield from _cores_of_host([job[rank] for rank in ranks], tuple(sorted(ranks)))


def _cores_of_host(known: Sequence[Facts], ranks: tuple[int, ...]) -> Iterator[Finding]:
    num_ranks = max(len(known), max(facts.launch.local_ranks or 1 for facts in known))
    num_cores = len({core for facts in known for core in facts.cores.usable})
    if len(known) < num_ranks and num_cores < known[0].cores.online:
        return  # each rank may have cores of its own, and who is missing has others
    quotas = [facts.cores.quota for facts in known if facts.cores.quota is not None]
    num_cores = min([num_cores, *(max(1, math.ceil(quota)) for quota in quotas)])
    shown = f"{_count(num_ranks, 'rank')} of a host on {_count(num_cores, 'core')}"
    if num_ranks > num_cores:
        mend = f"start at most {_count(num_cores, 'rank')} per host, or give the job or container more cores"
        yield Finding("slow", "cores", f"{shown}: ranks that wait for each other take turns", mend, ranks)
        return
    num_threads = sum(map(_num_threads, known)) * num_ranks // len(known)
    if num_ranks > 1 and num_threads > num_cores:
        mend = f"export OMP_NUM_THREADS={num_cores // num_ranks}"
        yield Finding("slow", "cores", f"{shown}, with {num_threads} threads of OpenMP together", mend, ranks)
    else:
        yield Finding("ok", "cores", shown, "", ranks)


def _num_threads(facts: Facts) -> int:
    """Threads of OpenMP in one rank: as many as it may use cores, where the variable does not say."""
    text = facts.variables.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isdigit() and int(text) else len(facts.cores.usable)


def check_versions_agree(job: Job) -> Iterator[Finding]:
    """Whether all ranks run the same software."""
    names = {name for facts in job.values() for name in facts.versions}
    for name in sorted(names):
        by_version = _ranks_by(job, partial(_version, name))
        if len(by_version) > 1:
            mend = "install the same on every host; codecs cloudpickle and auto refuse different versions of Python"
            yield _difference("slow", "versions", f"{name} differs", by_version, mend)


def check_variables_agree(job: Job) -> Iterator[Finding]:
    """Whether variables are set alike: those that round 0 compares, and others that make ranks differ."""
    names = {name for facts in job.values() for name in facts.variables} - {_MAY_DIFFER}
    for name in sorted(names):
        by_value = _ranks_by(job, partial(_variable, name))
        if len(by_value) == 1:
            continue
        shown = {"not set" if value is None else repr(value): ranks for value, ranks in by_value.items()}
        if name.removeprefix("GATHER_").startswith(_MUST_AGREE) and name.startswith("GATHER_"):
            mend = "set it alike on all ranks, as with mpiexec -genv, srun --export or in the job's script"
            yield _difference("fails", "variables", f"{name} must agree", shown, mend)
        else:
            yield _difference("slow", "variables", f"{name} differs", shown, "set it alike on all ranks, or know why")


def check_limits_agree(job: Job) -> Iterator[Finding]:
    """Whether the limits of processes are the same."""
    kinds: Sequence[tuple[str, str, Callable[[Facts], int | None]]] = (
        ("open files", "ulimit -n", lambda facts: facts.limits.open_files),
        ("file size", "ulimit -f", lambda facts: facts.limits.file_nbytes),
    )
    for subject, command, limit in kinds:
        by_limit = _ranks_by(job, limit)
        if len(by_limit) > 1:
            shown = {"none" if value is None else str(value): ranks for value, ranks in by_limit.items()}
            yield _difference("slow", subject, "the limit differs", shown, f"set {command} alike on every host")


def check_gpus_agree(job: Job) -> Iterator[Finding]:
    """Whether all ranks see as many GPUs, and the same NCCL."""
    by_number = _ranks_by(job, lambda facts: facts.torch.num_gpus)
    if len(by_number) > 1:
        mend = "look at drivers, containers and CUDA_VISIBLE_DEVICES of those with fewer"
        yield _difference("slow", "GPUs", "the number of CUDA devices differs", by_number, mend)
    by_nccl = _ranks_by(job, lambda facts: facts.torch.nccl)
    if len(by_nccl) > 1:
        mend = "install the same build of torch on every host"
        yield _difference("fails", "GPUs", "NCCL differs, and ranks of different ones cannot connect", by_nccl, mend)


def check_plugins_agree(job: Job) -> Iterator[Finding]:
    """Whether what one rank could use, all could."""
    for kind, name in sorted({(one.kind, one.name) for facts in job.values() for one in facts.plugins}):
        working = [rank for rank, facts in job.items() if _works(facts, kind, name)]
        if 0 < len(working) < len(job):
            lacking = sorted(set(job) - set(working))
            what = f"{kind} {name} works on {format_ranks(working)}, but not on {format_ranks(lacking)}"
            mend = "install the same on every host; `gather plugins` says there why it does not work"
            yield Finding("slow", "plug-ins", what, mend, tuple(lacking))


def _version(name: str, facts: Facts) -> str:
    return facts.versions.get(name, "missing")


def _variable(name: str, facts: Facts) -> str | None:
    return facts.variables.get(name)


def _works(facts: Facts, kind: str, name: str) -> bool:
    return any((one.kind, one.name, one.state) == (kind, name, "works") for one in facts.plugins)


def _ranks_by(job: Job, key: Callable[[Facts], K]) -> dict[K, list[int]]:
    found: dict[K, list[int]] = {}
    for rank, facts in sorted(job.items()):
        found.setdefault(key(facts), []).append(rank)
    return found


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _difference(level: Level, subject: str, what: str, ranks_by_value: Mapping[K, list[int]], mend: str) -> Finding:
    shown = ", ".join(f"{value} on {format_ranks(ranks)}" for value, ranks in ranks_by_value.items())
    most = max(ranks_by_value.values(), key=len)
    others = {rank for ranks in ranks_by_value.values() for rank in ranks} - set(most)
    return Finding(level, subject, f"{what}: {shown}", mend, tuple(sorted(others)))
