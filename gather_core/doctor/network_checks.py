"""What the facts about the network mean, which depends on whether the job has several hosts.

A container with a network of its own counts as a host here.
"""

from collections.abc import Iterator, Mapping, Sequence

from gather_core.doctor.facts import Facts, Interface
from gather_core.doctor.findings import Finding, Level
from gather_core.doctor.job_checks import Job, spans_networks

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_WHY_LOOPBACK = {
    "loopback": "this host's name resolves to the loopback address",
    "elsewhere": "this host's name resolves to addresses that this host does not have",
    "nothing": "this host's name does not resolve",
    "late": "this host's name did not resolve within 5 s",
}


def check_network(job: Job) -> Iterator[Finding]:
    """Whether ranks of other hosts can reach where Gloo and NCCL will listen."""
    several = spans_networks(job)
    for rank, facts in job.items():
        for finding in [*_gloo(facts, several), *_nccl(facts, several)]:
            yield Finding(finding.level, finding.subject, finding.what, finding.mend, (rank,))


def _gloo(facts: Facts, several: bool | None) -> Iterator[Finding]:
    named = facts.variables.get(_GLOO)
    if named is not None:
        yield from _gloo_interfaces(named, facts.network.interfaces, several)
    elif facts.network.own_name == "own":
        yield Finding("ok", "network", "Gloo listens on the address of this host's name")
    else:
        why = _WHY_LOOPBACK[facts.network.own_name]
        mend = f"export {_GLOO}={_example(facts.network.interfaces)}, or give the name its address in /etc/hosts"
        yield _on_loopback(f"{why}, so Gloo listens where only this host reaches it", several, mend)


def _gloo_interfaces(named: str, interfaces: Mapping[str, Interface], several: bool | None) -> Iterator[Finding]:
    names = named.split(",")
    missing = [name for name in names if name not in interfaces] if interfaces else []
    mend = f"export {_GLOO}={_example(interfaces)}, which is there and has an address; or unset it"
    if missing:
        yield Finding("fails", "network", f"{_GLOO}={named}: there is no interface {', '.join(missing)}", mend)
    elif unconnected := [name for name in names if interfaces.get(name) == "unconnected"]:
        yield Finding("fails", "network", f"{_GLOO}={named}: {', '.join(unconnected)} has no address", mend)
    elif any(interfaces.get(name) == "loopback" for name in names):
        yield _on_loopback(f"{_GLOO}={named}: only this host reaches a loopback interface", several, mend)
    else:
        yield Finding("ok", "network", f"Gloo listens on {named}")


def _on_loopback(what: str, several: bool | None, mend: str) -> Finding:
    if several is False:
        return Finding("ok", "network", "Gloo listens on the loopback address, which is enough for one host")
    level: Level = "fails" if several else "slow"
    suffix = "" if several else ": ranks on other hosts could not connect"
    return Finding(level, "network", what + suffix, mend)


def _nccl(facts: Facts, several: bool | None) -> Iterator[Finding]:
    """NCCL's rule: names begin with one of the list; `=` before it: are one of it; `^`: all others."""
    named = facts.variables.get(_NCCL)
    interfaces = facts.network.interfaces
    if named is None or not interfaces:
        return
    chosen = _chosen_by_nccl(named, interfaces)
    level: Level = "fails" if facts.torch.num_gpus and "nccl" in facts.torch.backends else "slow"
    mend = f"export {_NCCL}={_example(interfaces)}, or unset it"
    if not chosen:
        yield Finding(level, "network", f"{_NCCL}={named} fits no interface that has an address", mend)
    elif several and all(interfaces[name] == "loopback" for name in chosen):
        yield Finding(level, "network", f"{_NCCL}={named}: only this host reaches a loopback interface", mend)


def _chosen_by_nccl(named: str, interfaces: Mapping[str, Interface]) -> Sequence[str]:
    prefix = "^=" if named.startswith("^=") else named[:1] if named[:1] in ("^", "=") else ""
    words = [word for word in named.removeprefix(prefix).split(",") if word]

    def fits(name: str) -> bool:
        return name in words if "=" in prefix else any(name.startswith(word) for word in words)

    usable = [name for name, kind in interfaces.items() if kind != "unconnected"]
    return [name for name in usable if fits(name) != ("^" in prefix)]


def _example(interfaces: Mapping[str, Interface]) -> str:
    """An interface that leads somewhere; bridges of containers lead to this host's containers only."""
    connected = [name for name, kind in interfaces.items() if kind == "connected"]
    leading = [name for name in connected if not name.startswith(("docker", "veth", "br-", "virbr"))]
    return next(iter([*leading, *connected]), "<interface>")
