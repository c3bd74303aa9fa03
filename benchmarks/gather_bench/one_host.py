"""Shared memory beside everything that it competes with, in one run: `python -m gather_bench.one_host`.

Starts its ranks under mpiexec, so that mpi4py's own `allgather` and `pkl5` take turns with
`torch.distributed.all_gather_object`, the algorithm of `all_gather_list`, a Gatherer over `shm`, and bare copies: as
many bytes as all ranks' payloads, into memory that was written before (warm) or was not (fresh). A round takes as long
as on the slowest rank. "kept": no result is dropped before the end of a round. Of each array that has come, a byte
in every page is read within the time: memory that is there only once it is read costs what it costs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gather_bench.interleaved import Way, slowest_rank_medians
from gather_bench.looking import looked_at
from gather_core import Gatherer

_ROUNDS = 15
_ROUND_S = 0.1
"""Long enough for ranks that share cores to be spread over them: all have slept before, and run where they woke."""
_FITTING_SLOT_NBYTES = 160 * 1024


@dataclass(frozen=True)
class Bound:
    """What is wanted of the Gatherer: to be so many times faster than a peer, or to take no more than so many times."""

    peer: str
    times: float
    faster: bool = True

    def judged(self, medians: dict[str, float]) -> str:
        """The ratio and whether it is met."""
        ours_s, peer_s = medians["shm"], medians[self.peer]
        ratio = peer_s / ours_s if self.faster else ours_s / peer_s
        met = ratio >= self.times if self.faster else ratio <= self.times
        text = f"{ratio:6.2f} x as fast as" if self.faster else f"{ratio:6.2f} of the time of"
        wanted = f"{'at least' if self.faster else 'at most'} {self.times:g}"
        return f"    {text} {self.peer}: {wanted} {'met' if met else 'MISSED'}"


@dataclass(frozen=True)
class Workload:
    """What the ranks gather, and how."""

    name: str
    ways: dict[str, Way]
    bounds: Sequence[Bound] = ()
    calls: int | None = None
    """Of every way behind one barrier; None: as many as fill a round."""


def _dict(gatherer: Gatherer, peers: "_Peers") -> Workload:
    metrics = {f"metric_{number}": number * 1.5 for number in range(10)}
    bounds = [Bound("all_gather_object", 60)]
    if gatherer.world_size == 2:
        bounds.append(Bound("mpi4py", 1.6, faster=False))
    return Workload("dict of 10 numbers", peers.ways(gatherer, metrics), bounds)


def _dpr_step(gatherer: Gatherer, peers: "_Peers") -> Workload:
    import torch

    step = [torch.randn(16, 768), torch.randn(32, 768), list(range(16)), list(range(16, 32))]
    bounds = [Bound("all_gather_object", 12 if gatherer.world_size == 2 else 20)]
    if gatherer.world_size == 2:
        bounds.append(Bound("pkl5", 3))
    return Workload("DPR step, tensors", peers.ways(gatherer, step), bounds)


def _array(gatherer: Gatherer, peers: "_Peers", *, kept: bool) -> Workload:
    import numpy as np

    from gather_core.memory import aligned_buffer

    array = np.arange(2 << 20, dtype=np.int64)
    content = array.data.cast("B")
    warm = [aligned_buffer(len(content)) for _ in range(gatherer.world_size)]
    results: list[Any] = []

    def keep(result: Any) -> None:
        results.append(result)
        if len(results) > 2:  # one round's
            results.clear()

    def copies(new_memory: Callable[[int], memoryview]) -> Sequence[Any]:
        made = []
        for rank in range(gatherer.world_size):
            memory = new_memory(rank)
            memory[:] = content
            made.append(np.frombuffer(memory, np.int64))
        return made

    ways: dict[str, Way] = {
        "shm": lambda: keep(looked_at(gatherer.all_gather(array))) if kept else looked_at(gatherer.all_gather(array)),
        "all_gather_object": lambda: looked_at(peers.torch_all_gather(array)),
        "mpi4py": lambda: looked_at(peers.mpi.allgather(array)),
        "pkl5": lambda: looked_at(peers.pkl5.allgather(array)),
        "copies, fresh": lambda: keep(looked_at(copies(lambda rank: aligned_buffer(len(content))))),
        "copies, warm": lambda: looked_at(copies(lambda rank: warm[rank])),
    }
    two = gatherer.world_size == 2
    if kept:
        bounds = [Bound("all_gather_object", 7), Bound("copies, fresh", 1.7, faster=False)] if two else []
        return Workload("16 MiB array, kept", ways, bounds, calls=2)
    bounds = [Bound("all_gather_object", 15 if two else 13)]
    if two:
        bounds.append(Bound("copies, warm", 2.5, faster=False))
    return Workload("16 MiB array, dropped", ways, bounds, calls=2)


class _Peers:
    """What the Gatherer is compared with."""

    def __init__(self) -> None:
        from mpi4py import MPI
        from mpi4py.util import pkl5

        from gather_bench.peers import seed_all_gather_list, torch_all_gather_object

        self.mpi: Any = MPI.COMM_WORLD
        self.pkl5: Any = pkl5.Intracomm(MPI.COMM_WORLD)
        self.torch_all_gather = torch_all_gather_object
        self.seed_all_gather = seed_all_gather_list

    def ways(self, gatherer: Gatherer, obj: object) -> dict[str, Way]:
        return {
            "shm": lambda: gatherer.all_gather(obj),
            "all_gather_object": lambda: self.torch_all_gather(obj),
            "all_gather_list": lambda: self.seed_all_gather(obj, _FITTING_SLOT_NBYTES),
            "mpi4py": lambda: self.mpi.allgather(obj),
            "pkl5": lambda: self.pkl5.allgather(obj),
        }


def _measure_on_rank(store_file: str, rounds: int, spec: str) -> None:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    peers = _Peers()
    rank, world_size = peers.mpi.rank, peers.mpi.size
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=FileStore(store_file, world_size), rank=rank, world_size=world_size)
    with Gatherer(transport=spec, timeout_s=120) as gatherer:
        if rank == 0:
            print(f"{world_size} ranks: {gatherer.describe()}", flush=True)
        for make in (_dict, _dpr_step, _kept, _dropped):
            workload = make(gatherer, peers)
            medians = slowest_rank_medians(workload.ways, rounds, workload.calls, round_s=_ROUND_S)
            if rank == 0:
                print(_report(workload, medians), flush=True)
    dist.destroy_process_group()


def _kept(gatherer: Gatherer, peers: _Peers) -> Workload:
    return _array(gatherer, peers, kept=True)


def _dropped(gatherer: Gatherer, peers: _Peers) -> Workload:
    return _array(gatherer, peers, kept=False)


def _report(workload: Workload, medians: dict[str, float]) -> str:
    times = ", ".join(f"{name} {seconds * 1e6:.1f} us" for name, seconds in medians.items())
    return "\n".join([f"  {workload.name}: {times}", *(bound.judged(medians) for bound in workload.bounds)])


def main() -> None:
    """Starts the ranks, or is one of them; rank 0 prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-size", type=int, action="append", help="may be given several times; default 2 and 4")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--transport", default="shm", help="what takes the place of shm")
    parser.add_argument("--store-file", help=argparse.SUPPRESS)  # given to the ranks
    arguments = parser.parse_args()
    if arguments.store_file:
        _measure_on_rank(arguments.store_file, arguments.rounds, arguments.transport)
        return
    for world_size in arguments.world_size or [2, 4]:
        with tempfile.TemporaryDirectory() as folder:
            _launch(world_size, str(Path(folder, "store")), sys.argv[1:])


def _launch(world_size: int, store_file: str, arguments: list[str]) -> None:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec if mpiexec.exists() else "mpiexec"), "-n", str(world_size), sys.executable]
    subprocess.run([*command, "-m", "gather_bench.one_host", *arguments, "--store-file", store_file], check=True)


if __name__ == "__main__":
    main()
