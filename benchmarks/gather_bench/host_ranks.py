"""Ranks for a benchmark on several hosts: processes on network namespaces, with a process group over their network."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gather_bench.network_hosts import NetworkHosts, address

_PORT = "29500"
"""Nobody else is on these hosts."""
_RESULT = "result.json"
_LOOK_FOR_FAILURES_EVERY_S = 0.1
_ORPHANED = 1


class RankFailedOnHostError(RuntimeError):
    """A rank has failed and the others were stopped; the text has what it wrote to its standard error."""


def run_host_ranks(host_of_rank: Sequence[int], body: str, *args: Any) -> Any:
    """Runs a function on every rank of a new Gloo group across hosts, and returns what rank 0's returned.

    Args:
        host_of_rank: Where each rank runs: hosts are numbered from 0, and rank 0 is on the first.
        body: "module:function"; it finds the default group initialised and one thread per rank.
        args: What it gets; as its result, everything that JSON keeps.

    Raises:
        NoHostsError: This machine does not allow hosts of its own.
        RankFailedOnHostError: A rank raised, or was killed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="gather-hosts-") as name,
        NetworkHosts(max(host_of_rank) + 1, Path(name)) as hosts,
    ):
        with _started(hosts, Path(name), host_of_rank, [body, json.dumps(args)]) as ranks:
            _wait(ranks, Path(name))
        return json.loads(Path(name, _RESULT).read_text())


@contextmanager
def _started(
    hosts: NetworkHosts, folder: Path, host_of_rank: Sequence[int], arguments: list[str]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts the ranks, which end with the `with` block at the latest."""
    command = [sys.executable, "-m", "gather_bench.host_ranks", str(folder), *arguments]
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank, host in enumerate(host_of_rank):
            environment = hosts.environment(host) | _variables(rank, len(host_of_rank), address(host_of_rank[0]))
            with _written_by(folder, rank).open("wb") as errors:
                start = subprocess.Popen(
                    hosts.command(host, command), env=environment, stdin=subprocess.PIPE, stderr=errors
                )
            ranks.append(start)
        yield ranks
    finally:
        for process in ranks:
            process.kill()
        for process in ranks:
            process.communicate()


def _variables(rank: int, world_size: int, first: str) -> dict[str, str]:
    """What torchrun would set."""
    place = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": first, "MASTER_PORT": _PORT}
    return place | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _written_by(folder: Path, rank: int) -> Path:
    return folder / f"errors of {rank}"


def _wait(ranks: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    while any(code is None for code in (process.poll() for process in ranks)):
        _raise_failure(ranks, folder)
        time.sleep(_LOOK_FOR_FAILURES_EVERY_S)
    _raise_failure(ranks, folder)


def _raise_failure(ranks: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    for rank, process in enumerate(ranks):
        if process.returncode:
            said = _written_by(folder, rank).read_text(errors="replace").strip()
            raise RankFailedOnHostError(f"rank {rank} ended with exit status {process.returncode}\n{said}")


def _main() -> None:
    """One rank: `python -m gather_bench.host_ranks FOLDER MODULE:FUNCTION ARGUMENTS`, the arguments as JSON."""
    folder, body, arguments = sys.argv[1:]
    module, _, function = body.partition(":")
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = getattr(import_module(module), function)(*json.loads(arguments))
    if dist.get_rank() == 0:
        Path(folder, _RESULT).write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def _end_with_parent() -> None:
    """Else a parent that was killed leaves ranks that wait for each other."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(_ORPHANED)


if __name__ == "__main__":
    _main()
