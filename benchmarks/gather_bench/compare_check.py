"""How often `gather bench --compare` is wrong here: equal runs, and runs in which one transport takes 20 % longer.

Each run measures every way twice, in turns: as it is, and with a wait after each call. So a run gives what it has
measured, and for each transport what it would have measured, were that transport slower.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gather_bench.bench.cases import GATHERER, Case, peer_cases
from gather_bench.bench.launches import pooled_rows
from gather_bench.bench.measure import run_cases
from gather_bench.bench.payloads import payload
from gather_bench.bench.results import Row
from gather_bench.bench.ways import GathererWay, ReadyWay
from gather_bench.local_ranks import run_local_ranks
from gather_bench.report.compare.changes import Change, changes
from gather_core import Gatherer

_SLOWED = "slowed"
_LONGER = 0.2
_TRANSPORTS = ("gloo", "shm")
_PAYLOADS = ("metrics", "array:256KiB")
_SLOW_PEER = "all_gather_list"


class Slowed(ReadyWay):
    """Another way, after which each call waits for a part of the time that it took."""

    def __init__(self, way: ReadyWay) -> None:
        self._way = way
        self.encoded_nbytes = way.encoded_nbytes

    def __call__(self) -> Any:
        """Keeps the processor busy while it waits."""
        started = time.perf_counter()
        returned = self._way()
        end = time.perf_counter()
        end += _LONGER * (end - started)
        while time.perf_counter() < end:
            pass
        return returned


def measure(rounds: int) -> list[Row]:
    """(all ranks) One run."""
    with ExitStack() as stack:
        cases = [case for transport in _TRANSPORTS for case in _cases(transport, stack)]
        cases += [case for case in peer_cases() if case.way != _SLOW_PEER]
        return run_cases(cases, {name: payload(name) for name in _PAYLOADS}, rounds=rounds)


def _cases(transport: str, stack: ExitStack) -> Iterator[Case]:
    make_ready = partial(GathererWay, stack.enter_context(Gatherer("pickle", transport)))
    yield Case(GATHERER, make_ready, "pickle", transport, transport)
    yield Case(_SLOWED, lambda obj: Slowed(make_ready(obj)), "pickle", transport, transport)


def as_it_is(run: Sequence[Row]) -> list[Row]:
    """What was measured, without what was slowed down."""
    return [row for row in run if row.way != _SLOWED]


def with_slow(transport: str, run: Sequence[Row]) -> list[Row]:
    """What would have been measured, were the transport slower."""
    ours = [row for row in run if row.codec is None or (row.way == _SLOWED) == (row.transport == transport)]
    return [replace(row, way=GATHERER) if row.codec is not None else row for row in ours]


def print_rates(runs: Sequence[Sequence[Row]]) -> None:
    """Compares every two runs."""
    equal = [_changed(changes(as_it_is(old), as_it_is(new))) for old, new in combinations(runs, 2)]
    planted = [
        _is_shown(transport, changes(as_it_is(old), with_slow(transport, new)))
        for old, new in combinations(runs, 2)
        for transport in _TRANSPORTS
    ]
    margins = sorted(
        change.margin for old, new in combinations(runs, 2) for change in changes(old, new) if change.margin
    )
    print(f"equal runs: {sum(map(bool, equal))} of {len(equal)} comparisons show a change that there is not")
    print(f"one transport takes {_LONGER:.0%} longer: {sum(planted)} of {len(planted)} comparisons show it")
    print(f"a change had to reach {margins[len(margins) // 2] - 1:.0%} to be shown (median of all rows)")


def _changed(found: Sequence[Change]) -> list[Change]:
    return [change for change in found if change.verdict in ("slower", "faster")]


def _is_shown(transport: str, found: Sequence[Change]) -> bool:
    return any(change.verdict == "slower" and change.new.transport == transport for change in found)


def main() -> None:
    """Measures or reads runs, and prints how often their comparisons were wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="how often to measure, with new processes each time")
    parser.add_argument("--rounds", type=int, default=15, help="of each run, in all of its launches together")
    parser.add_argument("--launches", type=int, default=1, help="how often each run starts its processes; 8 are enough")
    parser.add_argument("--json", type=Path, help="keep the runs in this file")
    parser.add_argument("--from", type=Path, dest="saved", nargs="+", help="take the runs of such files instead")
    arguments = parser.parse_args()
    if arguments.saved:
        runs = [run for path in arguments.saved for run in _read(path)]
    else:
        runs = _measure_runs(arguments.runs, arguments.rounds, arguments.launches, arguments.json)
    print_rates(runs)


def _measure_runs(number: int, rounds: int, launches: int, file: Path | None) -> list[list[Row]]:
    """What is measured is kept at once, so that it is not lost where the rest is not waited for."""
    runs: list[list[Row]] = []
    while len(runs) < number:
        runs.append(_measure_run(rounds, launches))
        print(f"{len(runs)} of {number} runs", file=sys.stderr, flush=True)
        if file is not None:
            file.write_text(json.dumps([[asdict(row) for row in run] for run in runs]), encoding="utf-8")
    return runs


def _measure_run(rounds: int, launches: int) -> list[Row]:
    part = math.ceil(rounds / launches)
    return pooled_rows([run_local_ranks(2, measure, part) for _ in range(launches)])


def _read(path: Path) -> list[list[Row]]:
    return TypeAdapter(list[list[Row]]).validate_json(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
