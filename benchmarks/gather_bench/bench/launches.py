"""Several launches of the workers as one run: what differs between runs differs between its launches already."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median, median_low

from gather_bench.bench.options import Options
from gather_bench.bench.results import BASELINE, Report, Row, Split, Status, Timing

_BY_BADNESS: tuple[Status, ...] = ("measured", "unavailable", "refused", "failed", "wrong")


def pooled(launches: Sequence[Report], options: Options) -> Report:
    """Returns the report of all launches together.

    Args:
        launches: At least one; of the same ways, payloads and number of ranks.
        options: Of all together.
    """
    rows = pooled_rows([report.rows for report in launches])
    return replace(launches[0], options=options, rows=tuple(rows))


def pooled_rows(launches: Sequence[Sequence[Row]]) -> list[Row]:
    """Takes the rounds of the same row together; one that some launch has not measured is as in the worst launch."""
    rows = [_pooled(same) for same in zip(*launches, strict=True)]
    baselines = {(row.payload, row.world_size): row.seconds for row in rows if row.way == BASELINE}
    return [_against(baselines.get((row.payload, row.world_size)), row) for row in rows]


def _pooled(rows: Sequence[Row]) -> Row:
    timings = [row.seconds for row in rows if row.seconds is not None]
    if len(timings) < len(rows):
        return max(rows, key=lambda row: _BY_BADNESS.index(row.status))
    rounds = [seconds for timing in timings for seconds in timing.rounds]
    return replace(
        rows[0],
        calls=median_low([row.calls for row in rows if row.calls is not None]),
        seconds=Timing.of(rounds, [len(timing.rounds) for timing in timings]),
        split=_middle([row.split for row in rows if row.split is not None]),
        peak_nbytes=max((row.peak_nbytes for row in rows if row.peak_nbytes is not None), default=None),
    )


def _middle(splits: Sequence[Split]) -> Split | None:
    """The median of each part."""
    if not splits:
        return None
    waits = [split.wait for split in splits if split.wait is not None]
    return Split(
        encode=median(split.encode for split in splits),
        wait=median(waits) if waits else None,
        transfer=median(split.transfer for split in splits),
        decode=median(split.decode for split in splits),
    )


def _against(baseline: Timing | None, row: Row) -> Row:
    if row.seconds is None:
        return row
    return replace(row, times_faster=baseline.median / row.seconds.median if baseline else None)
