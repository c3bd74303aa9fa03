"""What the software's facts of one rank mean: each check is a pure function from facts to findings."""

from collections.abc import Iterator

from gather_core.doctor.facts import Facts
from gather_core.doctor.findings import Finding, Level

_OLDEST_TORCH = (2, 8)
"""The first whose Store has clone()."""


def check_versions(facts: Facts) -> Iterator[Finding]:
    """Says what is installed."""
    yield Finding("ok", "versions", ", ".join(f"{name} {number}" for name, number in facts.versions.items()))


def check_torch(facts: Facts) -> Iterator[Finding]:
    """Whether torch can be imported, is new enough and has the backends that this machine calls for."""
    torch = facts.torch
    if torch.version is None:
        yield Finding("fails", "torch", f"it cannot be imported: {torch.problem}", "install torch 2.8 or newer anew")
        return
    if _number(torch.version) < _OLDEST_TORCH:
        yield Finding("fails", "torch", f"{torch.version} is too old", "pip install 'torch>=2.8'")
    if "gloo" not in torch.backends:
        level: Level = "fails" if facts.launch.by == "torchrun" else "slow"
        mend = "install torch from PyPI, or build it with USE_GLOO=1"
        yield Finding(level, "torch", "this build has no Gloo, which connects ranks of several hosts", mend)
    if torch.num_gpus and "nccl" not in torch.backends:
        what = f"{_gpus(torch.num_gpus)}, but this build has no NCCL: the transport nccl cannot be used"
        yield Finding("slow", "torch", what, "install a build of torch for CUDA")
    build = f"built for CUDA {torch.cuda}" if torch.cuda else "built without CUDA"
    nccl = f", NCCL {torch.nccl}" if torch.nccl else ""
    backends = ", ".join(torch.backends) or "none"
    text = f"{torch.version}, {build}{nccl}; backends: {backends}; {_gpus(torch.num_gpus)}"
    yield Finding("ok", "torch", text)


def check_gpus(facts: Facts) -> Iterator[Finding]:
    """Whether there is a GPU for each rank of this host."""
    num_gpus, num_ranks = facts.torch.num_gpus, facts.launch.local_ranks
    if num_gpus and num_ranks and num_ranks > num_gpus:
        what = f"{num_ranks} ranks of a host share {_gpus(num_gpus)}, and NCCL refuses two ranks on one device"
        yield Finding("slow", "GPUs", what, "start one rank per device, or do not use the transport nccl")


def check_mpi(facts: Facts) -> Iterator[Finding]:
    """Whether mpi4py and its library are there, which matters most where mpiexec has started this process."""
    mpi, launched = facts.mpi, facts.launch.by == "mpiexec"
    if_broken: Level = "fails" if launched else "slow"
    install = "pip install 'gather-core[mpi]', or mpi4py for the MPI of your cluster"
    if mpi.mpi4py is None:
        if launched:
            what = "mpiexec has started this rank, but mpi4py is not installed: it would gather from itself alone"
            yield Finding("fails", "MPI", what, install)
        else:
            yield Finding("ok", "MPI", "mpi4py is not installed, which only jobs that mpiexec starts need")
    elif mpi.problem:
        mend = "put the MPI library where the loader finds it (module load, LD_LIBRARY_PATH), or install mpi4py for it"
        yield Finding(if_broken, "MPI", f"mpi4py {mpi.mpi4py} cannot be imported: {mpi.problem}", mend)
    else:
        started = "started by mpiexec" if launched else "not started by mpiexec"
        yield Finding("ok", "MPI", f"mpi4py {mpi.mpi4py} on {mpi.library}; {started}")


def check_settings(facts: Facts) -> Iterator[Finding]:
    """Whether `GATHER_*` variables, and the file that they name, make settings."""
    settings = facts.settings
    known = "docs/settings.md lists keys and variables"
    for problem in settings.problems:
        yield Finding("fails", "settings", problem, f"correct it: {known}")
    for warning in settings.warnings:
        yield Finding("slow", "settings", warning, f"correct or unset it: {known}")
    if not settings.problems and not settings.warnings:
        names = [name for name in facts.variables if name.startswith("GATHER_")]
        shown = ", ".join(f"{name}={facts.variables[name]}" for name in names) or "no GATHER_* variable is set"
        yield Finding("ok", "settings", shown)


def check_plugins(facts: Facts) -> Iterator[Finding]:
    """Whether codecs and transports can be loaded, and could run here."""
    for plugin in facts.plugins:
        what = f"{plugin.kind} {plugin.name}"
        if plugin.state == "broken":
            mend = "mend or uninstall the distribution that offers it; `gather plugins` shows which"
            yield Finding("fails", "plug-ins", f"{what} is broken: {plugin.reason}", mend)
        elif plugin.state == "unavailable":
            # of its own subject, as what is fine is merged by subject
            yield Finding("ok", what, f"cannot be used here: {plugin.reason}")
        for warning in plugin.warnings:
            yield Finding("slow", "plug-ins", f"{what}: {warning}", "uninstall the one that you do not want")
    works = [plugin for plugin in facts.plugins if plugin.state == "works"]
    counts = (f"{sum(one.kind == kind for one in works)} {kind}s" for kind in ("codec", "transport"))
    yield Finding("ok", "plug-ins", f"{' and '.join(counts)} work here")


def _gpus(number: int) -> str:
    if not number:
        return "no CUDA device"
    return "1 CUDA device" if number == 1 else f"{number} CUDA devices"


def _number(version: str) -> tuple[int, ...]:
    """Major and minor; a build's own name for a version is taken for a new one."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else _OLDEST_TORCH
