"""Jobs on several hosts that are network namespaces; skips the test where those are not allowed."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from gather_bench.network_hosts import NetworkHosts, NoHostsError, address

_RANK = Path(__file__).with_name("host_job_rank.py")
_WITHIN_S = 90.0


@contextmanager
def network_hosts(num_hosts: int, folder: Path) -> Iterator[NetworkHosts]:
    """Hosts for the `with` block."""
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(NetworkHosts(num_hosts, folder))
        except NoHostsError as exc:
            pytest.skip(f"no hosts of our own: {exc}")
        yield hosts


def run_on_hosts(
    hosts: NetworkHosts,
    folder: Path,
    host_of_rank: Sequence[int],
    body: Callable[..., Any],
    *arguments: Any,
    lost: int = 0,
    meanwhile: Callable[[], None] = lambda: None,
    **variables: str,
) -> list[Any]:
    """What `body(rank, world_size, *arguments)` returns on each rank; None for a rank that was killed.

    Args:
        hosts: Where the ranks run; rank 0, on host 0, hosts the store.
        folder: An empty one, which all hosts see.
        host_of_rank: Where each rank runs.
        body: Sent by value.
        arguments: Sent along.
        lost: How many ranks will not come back.
        meanwhile: Called once all ranks have been started.
        variables: More of the environment.
    """
    (folder / "body").write_bytes(cloudpickle.dumps((body, arguments)))
    world_size = len(host_of_rank)
    ranks = []
    for rank, host in enumerate(host_of_rank):
        command = [sys.executable, str(_RANK), str(folder), str(rank), str(world_size), address(host_of_rank[0])]
        more = {"PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", "GATHER_TEST_LOST": str(lost)}
        environment = hosts.environment(host) | more | variables
        ranks.append(subprocess.Popen(hosts.command(host, command), env=environment, stderr=subprocess.PIPE, text=True))
    try:
        meanwhile()
        _wait(ranks)
    finally:
        for process in ranks:
            process.kill()
    said = [process.communicate()[1] for process in ranks]
    return [_outcome(folder / f"outcome {rank}", said[rank]) for rank in range(world_size)]


def _wait(ranks: Sequence[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while any(process.poll() is None for process in ranks):
        assert time.monotonic() < deadline, "the ranks hang"
        time.sleep(0.02)


def _outcome(written: Path, said: str) -> Any:
    if not written.exists():
        return None
    is_fine, value = pickle.loads(written.read_bytes())
    assert is_fine, f"{value}\n{said}"
    return value
