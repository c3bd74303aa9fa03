"""Where the time of a call goes: measured in a pass of its own, with a stopwatch around the Gatherer's transport."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import torch.distributed as dist

from gather_bench.bench.results import Split
from gather_bench.bench.ways import GathererWay
from gather_bench.peers import torch_all_gather_object

_VERBS = ("all_gather_slots", "all_gather_exact", "all_to_all_exact")
"""In which a transport waits for other ranks and moves their bytes."""
_TURNS = 3


@dataclass(frozen=True)
class Lap:
    """One call on one rank; `entered` is a time of the host's clock, the others are seconds."""

    encode_s: float
    entered: float
    first_exchange_s: float
    inside_s: float
    decode_s: float


@dataclass
class Stopwatch:
    """Notes when this rank is inside its transport."""

    clock: Callable[[], float] = time.monotonic
    """The same for all processes of a host."""
    _stays: list[tuple[float, float]] = field(default_factory=list)
    _is_inside: bool = False

    @contextmanager
    def worn_by(self, wearer: object, verbs: Sequence[str]) -> Iterator[None]:
        """Puts itself around the verbs of this one object, and takes itself away again."""
        for verb in verbs:
            setattr(wearer, verb, self._around(getattr(wearer, verb)))
        try:
            yield
        finally:
            for verb in verbs:
                delattr(wearer, verb)

    def lap(self, call: Callable[[], object]) -> Lap:
        """Times one call, which enters the transport at least once."""
        self._stays.clear()
        started = self.clock()
        result = call()
        ended = self.clock()
        del result
        (entered, left), *_ = self._stays
        inside_s = sum(until - since for since, until in self._stays)
        encode_s = entered - started
        return Lap(encode_s, entered, left - entered, inside_s, ended - started - encode_s - inside_s)

    def _around(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a verb; what it calls of the same transport counts as a part of it."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside:
                return verb(*args, **kwargs)
            self._is_inside = True
            entered = self.clock()
            try:
                return verb(*args, **kwargs)
            finally:
                self._stays.append((entered, self.clock()))
                self._is_inside = False

        return watched


def measure_splits(ways: Mapping[str, GathererWay], calls: Mapping[str, int], hosts: int) -> dict[str, Split]:
    """(all ranks) Splits the time of calls in a row; the ways take turns, as when they are timed as a whole.

    Args:
        ways: By name, in the same order on every rank; ready, and called before.
        calls: How many calls of each are wanted at least, by name; a third of them in each turn, after one that is not
            counted.
        hosts: On how many hosts the ranks are.

    Returns:
        By name, the same on every rank.
    """
    laps: dict[str, list[Lap]] = {name: [] for name in ways}
    for _ in range(_TURNS):
        for name, way in ways.items():
            laps[name] += _laps(way, -(-calls[name] // _TURNS))
    return {name: split_of(torch_all_gather_object(own), has_one_clock=hosts == 1) for name, own in laps.items()}


def _laps(way: GathererWay, calls: int) -> list[Lap]:
    watch = Stopwatch()
    with watch.worn_by(way.gatherer.transport, _VERBS):
        dist.barrier()
        return [watch.lap(way) for _ in range(calls + 1)][1:]


def split_of(laps_of_ranks: Sequence[Sequence[Lap]], *, has_one_clock: bool) -> Split:
    """Takes the mean over the ranks of each call, then the median over the calls."""
    calls = list(zip(*laps_of_ranks, strict=True))
    waits = [_waits(laps) if has_one_clock else [0.0] * len(laps) for laps in calls]
    return Split(
        encode=median(fmean(lap.encode_s for lap in laps) for laps in calls),
        wait=median(map(fmean, waits)) if has_one_clock else None,
        transfer=median(
            fmean(lap.inside_s - wait for lap, wait in zip(laps, waits_of_call, strict=True))
            for laps, waits_of_call in zip(calls, waits, strict=True)
        ),
        decode=median(fmean(lap.decode_s for lap in laps) for laps in calls),
    )


def _waits(laps: Sequence[Lap]) -> list[float]:
    """Seconds that each rank has waited in its first exchange until the last rank had entered it."""
    last = max(lap.entered for lap in laps)
    return [min(last - lap.entered, lap.first_exchange_s) for lap in laps]
