"""What a large array costs besides its copies, on one rank over one slot: `python -m gather_bench.copies`.

A round trip copies twice: into the slot, which is warm, and out of it, into memory that the result keeps. So it is
compared with just that, measured in the same rounds: a copy into memory that was written before, and one from there
into memory that was not. A result that is dropped before the next one leaves its memory to it: both copies are warm.
Nothing here waits for anything, so times are processor time: other work on the machine hardly shows.
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch

from gather_core import Gatherer
from gather_core.blocks import drop_free_blocks, result_buffer
from gather_core.memory import aligned_buffer

_MIB = 1 << 20
_SLOT_HEADROOM_NBYTES = _MIB
_NUM_RESULTS = 4
_REUSE_KIB = (128, 512, 2048, 16384)
_CODECS = ("pickle", "msgpack", "raw")
_ENCODE_WITHIN_S = 50e-6
_KEPT_WITHIN = 1.3
_DROPPED_WITHIN = 1.5

Step = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """A time and the most that it may be."""

    case: str
    what: str
    measured_s: float
    """Seconds, median."""
    copies_s: float | None
    """Seconds of the copies alone, median; None where the bound is absolute."""
    bound: float
    """In copies, or in seconds."""

    @property
    def is_met(self) -> bool:
        """Whether the time is within its bound."""
        return self.measured_s <= self.bound * (1 if self.copies_s is None else self.copies_s)

    def __str__(self) -> str:
        text = f"  {self.case:15} {self.what:22} {self.measured_s * 1e6:7.0f} us"
        if self.copies_s is None:
            text += f", {'':36} bound {self.bound * 1e6:g} us"
        else:
            ratio = self.measured_s / self.copies_s
            text += f", its copies alone {self.copies_s * 1e6:7.0f} us: {ratio:5.2f} x, bound {self.bound:g} x"
        return f"{text} {'met' if self.is_met else 'MISSED'}"


def measure(codec: str, nbytes: int, rounds: int) -> list[Cost]:
    """Measures one codec with an array and a tensor of `nbytes` bytes."""
    array = np.arange(nbytes // 8, dtype=np.int64)
    costs = []
    with Gatherer(codec, "single", slot_nbytes=nbytes + _SLOT_HEADROOM_NBYTES) as gatherer:
        for name, obj in {"array": array, "tensor": torch.from_numpy(array)}.items():
            costs += _measure_object(f"{codec}, {name}", gatherer, obj, array.data.cast("B"), rounds)
    return costs


def _measure_object(case: str, gatherer: Gatherer, obj: object, content: memoryview, rounds: int) -> list[Cost]:
    slot, result = (_copy_into(aligned_buffer(len(content)), content) for _ in range(2))
    gather = partial(gatherer.all_gather, obj)
    encode = median_times({"encode": partial(gatherer.codec.encode, obj)}, rounds, keeps=False)
    _give_back_free_memory()

    def copy_to_fresh() -> memoryview:
        return _copy_into(aligned_buffer(len(content)), _copy_into(slot, content))

    def copy_to_warm() -> memoryview:
        return _copy_into(result, _copy_into(slot, content))

    kept = median_times({"gather": gather, "copies": copy_to_fresh}, rounds, keeps=True)
    dropped = median_times({"gather": gather, "copies": copy_to_warm}, rounds, keeps=False)
    return [
        Cost(case, "encode", encode["encode"], None, _ENCODE_WITHIN_S),
        Cost(case, "round trip, kept", kept["gather"], kept["copies"], _KEPT_WITHIN),
        Cost(case, "round trip, dropped", dropped["gather"], dropped["copies"], _DROPPED_WITHIN),
    ]


def median_times(steps: dict[str, Step], rounds: int, *, keeps: bool) -> dict[str, float]:
    """Runs the steps in turns; returns the medians of this thread's processor time, in seconds.

    Args:
        steps: What to call, by name.
        rounds: How many rounds are counted; one more warms up.
        keeps: Whether all results stay until the end, so that none leaves its memory to another.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    kept = []
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = time.thread_time()
            result = step()
            elapsed_s = time.thread_time() - started
            if keeps:
                kept.append(result)
            del result
            if number:
                times[name].append(elapsed_s)
    return {name: median(values) for name, values in times.items()}


def measure_reuse(nbytes: int, rounds: int) -> str:
    """Measures copies into as many results as four ranks make, in new memory and in that of dropped results."""
    content = _copy_into(aligned_buffer(nbytes), memoryview(bytes(nbytes)))

    def copy_into_all(new_buffer: Callable[[int], memoryview]) -> list[memoryview]:
        return [_copy_into(new_buffer(nbytes), content) for _ in range(_NUM_RESULTS)]

    steps: dict[str, Step] = {way.__name__: partial(copy_into_all, way) for way in (aligned_buffer, result_buffer)}
    new_s, reused_s = median_times(steps, rounds, keeps=False).values()
    return (
        f"  {_NUM_RESULTS} x {nbytes // 1024:5} KiB into new memory {new_s * 1e6:7.0f} us, "
        f"into reused {reused_s * 1e6:7.0f} us: {new_s / reused_s:4.1f} x"
    )


def _copy_into(memory: memoryview, content: memoryview) -> memoryview:
    memory[:] = content
    return memory


def _give_back_free_memory() -> None:
    """Where the C library can: so that memory is not fresh by name only, with pages of an earlier case."""
    drop_free_blocks()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def main() -> None:
    """Prints each time with its bound; exits with 1 where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=16, help="MiB of the array; default 16, for which the bounds are")
    parser.add_argument("--rounds", type=int, default=15, help="of each way; default 15, all of whose results are kept")
    parser.add_argument("--codec", action="append", help=f"may be given several times; default {' '.join(_CODECS)}")
    arguments = parser.parse_args()
    # First: the C library keeps more of what is freed, once it has seen large memory come and go.
    print("Results that were dropped before the next ones are made; no bound", flush=True)
    for kib in _REUSE_KIB:
        print(measure_reuse(kib * 1024, arguments.rounds), flush=True)
    print(f"{arguments.mib} MiB of int64, one rank, one slot; medians of {arguments.rounds} rounds", flush=True)
    costs = []
    for codec in arguments.codec or _CODECS:
        costs += (measured := measure(codec, arguments.mib * _MIB, arguments.rounds))
        print(*measured, sep="\n", flush=True)
    sys.exit(not all(cost.is_met for cost in costs))


if __name__ == "__main__":
    main()
