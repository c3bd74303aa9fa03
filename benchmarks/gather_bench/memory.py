"""Peak memory of an all-gather of large objects, against its bound: `python -m gather_bench.memory`. Linux only.

With `--skewed` one rank has all but a few of the bytes; a transport that pads to the largest is far above the bound.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch.distributed as dist

from gather_bench.local_ranks import run_local_ranks
from gather_bench.resident import CLEAR_REFS, peak_nbytes, reset_peak
from gather_core import Gatherer

_MIB = 1 << 20
_WORKING_NBYTES = 64 * _MIB
_SMALL_NBYTES = 1024
_SKEWED_FACTOR = 1.5


def bound_nbytes(world_size: int, nbytes: int, *, skewed: bool) -> int:
    """What a rank may use above what it had before.

    Where every rank has `nbytes`: the payloads, the objects made of them, and some working space. Where one has: half
    as much again as what arrives.
    """
    if skewed:
        return int(_SKEWED_FACTOR * (nbytes + (world_size - 1) * _SMALL_NBYTES))
    return 2 * world_size * nbytes + _WORKING_NBYTES


def skewed_array(rank: int, world_size: int, nbytes: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Returns `nbytes` on the last rank, and 1 KiB on all others."""
    return np.full((nbytes if rank == world_size - 1 else _SMALL_NBYTES) // 8, 1, np.int64)


def peaks_above_before(world_size: int, nbytes: int, transport: str, *, skewed: bool) -> list[int]:
    """Starts local ranks that all-gather `nbytes` each, or on the last alone where the sizes are skewed.

    Returns:
        Each rank's peak resident memory above before, in bytes.
    """
    peaks: list[int] = run_local_ranks(world_size, _peaks_on_rank, world_size, nbytes, transport, skewed)
    return peaks


def _peaks_on_rank(world_size: int, nbytes: int, transport: str, skewed: bool) -> list[int]:
    with Gatherer(transport=transport) as gatherer:
        array = skewed_array(gatherer.rank, world_size, nbytes) if skewed else np.full(nbytes // 8, 1, np.int64)
        gatherer.all_gather(0)  # connections and their buffers are not what is measured
        dist.barrier()
        before = reset_peak()
        gathered = gatherer.all_gather(array)
        peak = peak_nbytes() - before
        del gathered
        return gatherer.all_gather(peak)


def main() -> None:
    """Prints each rank's peak; exits with 1 where one is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world-size", type=int, default=4)
    parser.add_argument("--mib", type=int, default=64, help="MiB of each rank's array; default 64")
    parser.add_argument("--transport", default="gloo", help="transport spec; default gloo")
    parser.add_argument("--skewed", action="store_true", help="only the last rank has that much, the others 1 KiB")
    arguments = parser.parse_args()
    if not CLEAR_REFS.exists():
        sys.exit(f"peak memory is measured through {CLEAR_REFS}, which this system does not have")
    nbytes = arguments.mib * _MIB
    bound = bound_nbytes(arguments.world_size, nbytes, skewed=arguments.skewed)
    peaks = peaks_above_before(arguments.world_size, nbytes, arguments.transport, skewed=arguments.skewed)
    for rank, peak in enumerate(peaks):
        verdict = "within" if peak <= bound else "ABOVE"
        print(f"rank {rank}: {peak / _MIB:.0f} MiB above before, {verdict} the bound of {bound / _MIB:.0f} MiB")
    sys.exit(max(peaks) > bound)


if __name__ == "__main__":
    main()
