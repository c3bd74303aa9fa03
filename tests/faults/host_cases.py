"""Cases 44-48: what happens to whole hosts and to the network between them, which are network namespaces.

What could be left behind is not counted here: it would go with the host.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.names import named_ranks
from faults.runner import Left, Row
from gather_bench.network_hosts import NetworkHosts, NoHostsError
from gather_core import Gatherer, GroupBrokenError, TransportError
from host_job import run_on_hosts

TIMEOUT_S = 3.0
_ALLOWED_S = TIMEOUT_S + 4.0
"""The timeout, what ranks wait beyond it to hear the cause, and what they take to ask each other."""
_SMALL_NBYTES, _LARGE_NBYTES = 10, 20_000_000
_CHUNK_NBYTES = 65536
_READY_WITHIN_S = 60.0


@dataclass(frozen=True)
class HostCase:
    """One fault between hosts.

    Args:
        number: In plan.toml.
        name: What happens.
        host_of_rank: Where the ranks are; rank 0 hosts the store.
        happens: Once all ranks have gathered something.
        nbytes: What each rank gathers then.
        named: The ranks of which each survivor's error names at least one.
        dies: The ranks that are killed.
        succeeds: Whether all goes well nevertheless.
        transports: Over which it runs.
    """

    number: int
    name: str
    host_of_rank: Sequence[int]
    happens: Callable[[NetworkHosts], object] = lambda hosts: None
    nbytes: int = _SMALL_NBYTES
    named: Sequence[int] = ()
    dies: Sequence[int] = ()
    succeeds: bool = False
    transports: Sequence[str] = ("gloo", "shm+gloo")


HOST_CASES: list[HostCase] = [
    HostCase(44, "network down, round 1", (0, 0, 1), lambda hosts: hosts.set_link(1, "down"), named=(0, 1, 2)),
    HostCase(
        44,
        "network down, round 2",
        (0, 0, 1),
        lambda hosts: hosts.set_link(1, "down"),
        _LARGE_NBYTES,
        named=(0, 1, 2),
    ),
    HostCase(45, "a leader is killed", (0, 0, 1, 1), named=(2,), dies=(2,)),
    HostCase(46, "a host is lost", (0, 0, 1, 1), named=(2, 3), dies=(2, 3)),
    HostCase(
        47, "only leaders are cut off", (0, 1, 1, 2), lambda hosts: hosts.cut(1, 2), _LARGE_NBYTES, named=(1, 2, 3)
    ),
    HostCase(48, "1 Mbit/s", (0, 0, 1), lambda hosts: hosts.slow_down(1, "1mbit"), 600_000, succeeds=True),
]


def run_on_network(case: HostCase, transport: str) -> Row:
    """Runs one case; never raises for what ranks do."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        try:
            with NetworkHosts(max(case.host_of_rank) + 1, folder) as hosts:
                found = _run_on(hosts, folder, case, transport)
        except NoHostsError as exc:
            return Row(case.number, case.name, transport, f"not run: no hosts of our own, {exc}", None)
        except AssertionError as exc:
            return Row(case.number, case.name, transport, "hangs", None, Left(), [f"hangs: {exc}"])
    survivors = [rank for rank in range(len(case.host_of_rank)) if rank not in case.dies]
    problems = [problem for rank in survivors for problem in _judged(case, rank, found[rank])]
    seen = [found[rank] for rank in survivors if found[rank] is not None]
    errors = ", ".join(sorted({error or "none" for error, *_ in seen}))
    seconds = max((one[3] for one in seen), default=None)
    return Row(case.number, case.name, transport, errors, seconds, Left(), problems, counted=())


def _run_on(hosts: NetworkHosts, folder: Path, case: HostCase, transport: str) -> list[Any]:
    def meanwhile() -> None:
        deadline = time.monotonic() + _READY_WITHIN_S
        while len([*folder.glob("ready *")]) < len(case.host_of_rank):
            assert time.monotonic() < deadline, "the ranks do not begin"
            time.sleep(0.01)
        (folder / "begun").write_text(repr(time.monotonic()))
        case.happens(hosts)
        (folder / "go").touch()

    arguments = (str(folder), transport, case)
    lost = len(case.dies)
    return run_on_hosts(hosts, folder, case.host_of_rank, gather_on, *arguments, lost=lost, meanwhile=meanwhile)


def gather_on(rank: int, world_size: int, folder: str, transport: str, case: HostCase) -> Any:
    """What each rank does; returns its error, whom it names, its text, the seconds to it, and what later calls do."""
    nbytes = case.nbytes
    if case.succeeds:
        transport = _in_small_chunks(transport)
    with Gatherer(transport=transport, timeout_s=TIMEOUT_S) as gatherer:
        gatherer.all_gather(rank, timeout_s=30)
        Path(folder, f"ready {rank}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.005)
        if rank in case.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        error: BaseException | None = None
        try:
            for number in range(2):
                assert gatherer.all_gather((number, bytes(nbytes))) == [(number, bytes(nbytes))] * world_size
        except TransportError as exc:
            error = exc
        took_s = time.monotonic() - float(Path(folder, "begun").read_text())
        if error is None:
            return "", (), "", took_s, "goes on"
        try:
            gatherer.barrier()
        except GroupBrokenError:
            return type(error).__name__, named_ranks(error), str(error), took_s, "broken"
        return type(error).__name__, named_ranks(error), str(error), took_s, "goes on"


def _in_small_chunks(transport: str) -> str:
    """(all ranks) Of which a slow network carries one within the timeout: each that arrives renews it."""
    from gather_transports import host_blocks

    vars(host_blocks).update(LANDING_NBYTES=_CHUNK_NBYTES, LEAST_CHUNK_NBYTES=_CHUNK_NBYTES)
    return f"{transport}:chunk_nbytes={_CHUNK_NBYTES}"


def _judged(case: HostCase, rank: int, found: Any) -> Iterator[str]:
    if found is None:
        yield f"rank {rank} did not come back"
        return
    error, named, text, took_s, afterwards = found
    if case.succeeds:
        if error:
            yield f"rank {rank}: {error} instead of nothing: {text}"
        return
    if not error:
        yield f"rank {rank}: nothing instead of an error"
    elif not set(named) & set(case.named):
        yield f"rank {rank} names {[*named]} and none of {[*case.named]}: {text}"
    if afterwards != "broken":
        yield f"rank {rank}: afterwards: {afterwards} instead of broken"
    if took_s > _ALLOWED_S:
        yield f"rank {rank}: after {took_s:.1f} s instead of {_ALLOWED_S:.1f} s"
