"""The soak's parent: it starts episodes, kills and stops ranks, and keeps count of what must not be."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from leftovers import shared_memory, still_there
from rank_pool import RankOutcome, RankPool, RanksHungError, Running
from soak.rank import GO, Ended, live
from soak.script import WORLD_SIZE, Episode, episode
from worker_process import processes_of

HANG_S = 120.0
"""More than an episode takes on a busy machine, timeouts included."""
JUDGED_FROM = 80
"""Episodes of a process from which on its memory is judged: the first half of its life is the warm-up, as the allocator
keeps more and more until all sizes, codecs and transports have come."""
MOST_GROWTH_NBYTES = 32 << 20


@dataclass
class Tally:
    """What has happened so far."""

    num_episodes: int = 0
    num_operations: int = 0
    num_kills: int = 0
    num_stops: int = 0
    num_failed: int = 0
    """Episodes that a kill or a stop has ended before their time."""
    wrong: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    resident_nbytes: dict[int, list[int]] = field(default_factory=dict)
    """Of each process, after each of its episodes."""

    @property
    def growth_nbytes(self) -> int:
        """By how much the process whose memory has grown most has grown in the second half of its life."""
        return max((_growth(sizes) for sizes in self.resident_nbytes.values()), default=0)

    @property
    def longest_life(self) -> int:
        """In episodes."""
        return max(map(len, self.resident_nbytes.values()), default=0)

    @property
    def is_good(self) -> bool:
        """Whether nothing was wrong, hung, left, or grew."""
        return not (self.wrong or self.hangs or self.left) and self.growth_nbytes <= MOST_GROWTH_NBYTES


def _growth(sizes: Sequence[int]) -> int:
    if len(sizes) < JUDGED_FROM:
        return 0
    middle = len(sizes) // 2
    return int(median(sizes[-5:]) - median(sizes[middle : middle + 5]))


class Soak:
    """Episodes, one after another, on the workers of a pool."""

    def __init__(self, pool: RankPool) -> None:
        self.tally = Tally()
        self._pool = pool

    def run(self, seed: int) -> None:
        """Runs the episode of a seed."""
        self.live_through(episode(seed))

    def live_through(self, planned: Episode) -> None:
        """Runs an episode; what goes wrong is in the tally."""
        tally, pool = self.tally, self._pool
        names = shared_memory()
        tally.num_episodes += 1
        running = pool.start(WORLD_SIZE, live, planned)
        try:
            for rank in range(WORLD_SIZE):
                running.wait_for(rank, GO, HANG_S)
            self._disturb(running, planned)
            outcomes = running.wait(HANG_S)
        except RanksHungError as exc:
            tally.hangs.append(f"{planned}: {exc}")
            return
        except AssertionError as exc:
            running.abandon()
            tally.wrong.append(f"{planned}: {exc}")
            return
        self._judge(planned, outcomes)
        self._look_around(planned, names)

    def _disturb(self, running: Running, planned: Episode) -> None:
        if planned.disturbance == "none":
            return
        pid = running.pid(planned.victim)
        _poll_for(running, planned.after_s)
        if planned.disturbance == "kill":
            self.tally.num_kills += 1
            running.kill(planned.victim)
            return
        self.tally.num_stops += 1
        os.kill(pid, signal.SIGSTOP)
        try:
            _poll_for(running, planned.stopped_s)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _judge(self, planned: Episode, outcomes: Sequence[RankOutcome]) -> None:
        tally = self.tally
        failed = False
        for rank, outcome in enumerate(outcomes):
            if outcome.exitcode is not None:
                failed = True
                if planned.disturbance != "kill" or rank != planned.victim:
                    tally.wrong.append(f"{planned}: rank {rank} {outcome}")
            elif not isinstance(outcome.value, Ended):
                tally.wrong.append(f"{planned}: rank {rank} {outcome}")
            else:
                failed = failed or bool(outcome.value.error)
                self._count(planned, rank, outcome.value)
        tally.num_failed += failed

    def _count(self, planned: Episode, rank: int, ended: Ended) -> None:
        self.tally.num_operations += ended.num_operations
        self.tally.resident_nbytes.setdefault(ended.pid, []).append(ended.resident_nbytes)
        if ended.left.threads or ended.left.descriptors:
            self.tally.left.append(f"{planned}: rank {rank}: {ended.left}")

    def _look_around(self, planned: Episode, names: set[str]) -> None:
        temporary = self._pool.scratch / "tmp"
        left = [
            *still_there(shared_memory, names),
            *still_there(lambda: set(os.listdir(temporary)), set()),
            *still_there(
                lambda: {f"process {pid}" for pid in processes_of(self._pool.scratch) - self._pool.pids()}, set()
            ),
        ]
        self.tally.left += [f"{planned}: {what}" for what in left]

    def _strangers(self) -> set[str]:
        """Processes that are no workers."""
        return {f"process {pid}" for pid in processes_of(self._pool.scratch) - self._pool.pids()}


def _poll_for(running: Running, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left_s := deadline - time.monotonic()) > 0:
        running.poll(left_s)
