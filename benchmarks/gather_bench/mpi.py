"""The transport `mpi` beside mpi4py's own ways, in one run: `mpiexec -n 2 python -m gather_bench.mpi`.

`allgather` is mpi4py's, which pickles; `pkl5` the same with pickle's buffers out of band. `bytes` is what the transport
itself takes for a slot that is filled as the workload's. Rounds are interleaved; a round takes as long as on the
slowest rank.
"""

import argparse
import pickle
import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np
from mpi4py import MPI
from mpi4py.util import pkl5

from gather_core import Gatherer

_ROUNDS = 15


def measure(ways: Mapping[str, Callable[[], object]], calls: int, rounds: int) -> dict[str, float]:
    """(all ranks) Returns the medians of the slowest rank, in seconds per call; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            MPI.COMM_WORLD.Barrier()
            started = time.perf_counter()
            for _ in range(calls):
                way()
            slowest_s = MPI.COMM_WORLD.allreduce(time.perf_counter() - started, MPI.MAX)
            if number:
                times[name].append(slowest_s / calls)
    return {name: median(values) for name, values in times.items()}


def _ways(gatherer: Gatherer, obj: object) -> dict[str, Callable[[], object]]:
    theirs, out_of_band = MPI.COMM_WORLD, pkl5.Intracomm(MPI.COMM_WORLD)
    return {
        "gather-core": lambda: gatherer.all_gather(obj),
        "allgather": lambda: theirs.allgather(obj),
        "pkl5": lambda: out_of_band.allgather(obj),
    }


def _bytes(gatherer: Gatherer, obj: object) -> dict[str, Callable[[], object]]:
    """Only the transport, where the object fits in a slot."""
    nbytes = len(pickle.dumps(obj))
    if nbytes > gatherer.slot_nbytes:
        return {}
    return {"bytes": lambda: gatherer.transport.all_gather_slots(nbytes, timeout_s=60)}


def main() -> None:
    """Measures all workloads and prints the ratios on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--transport", default="mpi", help="with options, such as mpi:algorithm='direct'")
    parser.add_argument("--workload", action="append", choices=["dict", "DPR step", "16 MiB"], help="default: all")
    arguments = parser.parse_args()
    generator = np.random.default_rng(MPI.COMM_WORLD.rank)
    vectors = [generator.random((count, 768), np.float32) for count in (16, 32)]
    workloads: dict[str, tuple[object, int]] = {
        "dict": ({f"metric_{number}": number * 1.5 for number in range(10)}, 2000),
        "DPR step": ([*vectors, list(range(16)), list(range(16, 32))], 200),
        "16 MiB": (np.arange(2 << 20, dtype=np.int64), 2),
    }
    with Gatherer(transport=arguments.transport) as gatherer:
        for name in arguments.workload or workloads:
            obj, calls = workloads[name]
            medians = measure(_ways(gatherer, obj) | _bytes(gatherer, obj), calls, arguments.rounds)
            if MPI.COMM_WORLD.rank == 0:
                print(_line(name, medians), flush=True)


def _line(workload: str, medians: Mapping[str, float]) -> str:
    ours_s = medians["gather-core"]
    texts = [f"{name} {seconds * 1e6:.1f} us ({seconds / ours_s:.2f} x)" for name, seconds in medians.items()]
    return f"{MPI.COMM_WORLD.size} ranks, {workload:8}: " + ", ".join(texts)


if __name__ == "__main__":
    main()
