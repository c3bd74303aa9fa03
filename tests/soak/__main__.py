"""The command behind `make soak`: random operations on 4 ranks, with random kills and stops, for a time.

Fails where a result was wrong, a rank hung, something was left behind, or memory grew.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from rank_pool import RankPool
from soak.parent import MOST_GROWTH_NBYTES, Soak, Tally
from soak.script import WORLD_SIZE

_TELL_EVERY_S = 30.0
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""For ranks: large blocks of random sizes are given back, and do not look like memory that grows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no rank outlives it
    seed = int(time.time()) if options.seed is None else options.seed
    print(f"soaking for {options.seconds:g} s from seed {seed}", flush=True)
    os.environ.update(_ALLOCATOR)
    pool = RankPool()
    try:
        pool.prepare(WORLD_SIZE)
        soak = Soak(pool)
        _run(soak, seed, options.seconds, options.episodes)
    finally:
        left = pool.close()
    soak.tally.left += left
    print(report(soak.tally))
    return int(not soak.tally.is_good)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for how long")
    parser.add_argument("--seed", type=int, default=None, help="of the first episode; else another one each time")
    parser.add_argument("--episodes", type=int, default=None, help="at most so many: 1 repeats that of a seed")
    return parser


def _run(soak: Soak, seed: int, seconds: float, episodes: int | None) -> None:
    deadline = time.monotonic() + seconds
    told_s = time.monotonic()
    while time.monotonic() < deadline and (episodes is None or soak.tally.num_episodes < episodes):
        soak.run(seed + soak.tally.num_episodes)
        if time.monotonic() - told_s > _TELL_EVERY_S:
            told_s = time.monotonic()
            print(_counts(soak.tally), flush=True)


def report(tally: Tally) -> str:
    """What has happened, and everything that should not have."""
    wrong = [f"{what}: {text}" for what in ("wrong", "hangs", "left") for text in getattr(tally, what)]
    return "\n".join([_counts(tally), *wrong])


def _counts(tally: Tally) -> str:
    return (
        f"{tally.num_episodes} episodes, {tally.num_operations} operations on their ranks, {tally.num_kills} kills, "
        f"{tally.num_stops} stops, {tally.num_failed} episodes ended by them: {len(tally.wrong)} wrong, "
        f"{len(tally.hangs)} hangs, {len(tally.left)} leftovers; memory grew by "
        f"{tally.growth_nbytes >> 20} MiB at most, of {MOST_GROWTH_NBYTES >> 20} allowed, in the second half of lives "
        f"of up to {tally.longest_life} episodes"
    )


if __name__ == "__main__":
    sys.exit(main())
