"""Measures every way in which Gloo's round 1 can travel, beside the choice: `python -m gather_bench.gloo_table`.

The ranks are local, so that what is measured is the column for one host of the table in
`gather_transports/gloo_choice.py`. Rounds are interleaved: other work on the machine shows in all columns alike.
"""

import argparse
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from statistics import median

from gather_bench.interleaved import Way, slowest_rank_rounds
from gather_bench.local_ranks import run_local_ranks
from gather_core.local_store import ScopedStore
from gather_transports.gloo import GlooTransport
from gather_transports.gloo_choice import Choice, WayName

_UNBOUNDED = 1 << 62
FORCED = {
    "hub": {"hub_up_to_nbytes": _UNBOUNDED},
    "all_to_all": {"hub_up_to_nbytes": 0, "all_to_all_up_to_nbytes": _UNBOUNDED},
    "direct": {"hub_up_to_nbytes": 0, "all_to_all_up_to_nbytes": 0},
}
"""The options of `GlooTransport` that leave one way only."""
SLOT_NBYTES = (512, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
_TIMEOUT_S = 120.0
_CALLS_TAKE_NBYTES = 32 << 20
"""So many bytes go through the calls behind one barrier, all ranks together."""


@dataclass(frozen=True)
class Row:
    """What one slot size takes, each way."""

    world_size: int
    slot_nbytes: int
    seconds: dict[str, float]
    """Per exchange on the slowest rank, median, by way."""
    chosen: WayName

    @property
    def fastest(self) -> str:
        """The way that took least."""
        return min(self.seconds, key=self.seconds.__getitem__)

    def __str__(self) -> str:
        times = "".join(f"{self.seconds[way] * 1e6:12.0f}" for way in FORCED)
        behind = self.seconds[self.chosen] / self.seconds[self.fastest]
        note = "" if self.chosen == self.fastest else f", {behind:.2f} times as long as {self.fastest}"
        return f"{self.world_size:5}{_size(self.slot_nbytes):>10}{times}  {self.chosen}{note}"


HEADER = f"ranks{'slot':>10}{''.join(f'{way:>12}' for way in FORCED)}  chosen"


def _size(nbytes: int) -> str:
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes // scale} {unit}"
    return f"{nbytes} B"


def measure(world_size: int, slot_sizes: Iterable[int] = SLOT_NBYTES, rounds: int = 7) -> list[Row]:
    """Starts local ranks and measures all ways with each slot size."""
    rows: list[Row] = run_local_ranks(world_size, _measure_on_rank, world_size, tuple(slot_sizes), rounds)
    return rows


def _measure_on_rank(world_size: int, slot_sizes: tuple[int, ...], rounds: int) -> list[Row]:
    return [_row(world_size, slot_nbytes, rounds) for slot_nbytes in slot_sizes]


def _row(world_size: int, slot_nbytes: int, rounds: int) -> Row:
    calls = max(1, min(100, _CALLS_TAKE_NBYTES // (slot_nbytes * world_size * world_size)))
    with ExitStack() as opened:
        ways = {name: _exchange(opened.enter_context(closing(_open(name, slot_nbytes)))) for name in FORCED}
        times = slowest_rank_rounds(ways, rounds, dict.fromkeys(ways, calls))
    chosen, _ = Choice(world_size, num_hosts=1).round_1(slot_nbytes)
    return Row(world_size, slot_nbytes, {name: median(values) for name, values in times.items()}, chosen)


def _open(name: str, slot_nbytes: int) -> GlooTransport:
    """(all ranks) Opens the transport with one way only, as a Gatherer does."""
    context = GlooTransport.join(None)
    transport = GlooTransport(**FORCED[name])
    store = ScopedStore(f"{name}/{slot_nbytes}", context.store)
    transport.open(replace(context, store=store, hosts=(0,) * context.world_size), slot_nbytes, timeout_s=_TIMEOUT_S)
    return transport


def _exchange(transport: GlooTransport) -> Way:
    """One exchange of full slots, whose bytes are written each time, as a Gatherer does."""
    nbytes = transport.slot_nbytes
    content = bytes(nbytes)

    def exchange() -> None:
        transport.slot(nbytes)[:] = content
        transport.all_gather_slots(nbytes, timeout_s=_TIMEOUT_S)

    return exchange


def main() -> None:
    """Prints a row for each world size and slot size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-size", type=int, action="append", help="may be given several times; default 2, 4, 8")
    parser.add_argument("--slot-nbytes", type=int, action="append", help="may be given several times")
    arguments = parser.parse_args()
    print("us per exchange of full slots, medians of the slowest rank", HEADER, sep="\n", flush=True)
    for world_size in arguments.world_size or [2, 4, 8]:
        print(*measure(world_size, arguments.slot_nbytes or SLOT_NBYTES), sep="\n", flush=True)


if __name__ == "__main__":
    main()
