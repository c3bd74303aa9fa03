"""The rows of a report as sections need them: those that were measured, in groups, with labels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gather_bench.bench.only_codecs.quantities import seconds_text
from gather_bench.bench.results import Report, Row, Timing
from gather_bench.bench.wording import count

K = TypeVar("K")


@dataclass(frozen=True)
class Measured:
    """A row that was measured, so that what it was measured as needs no second look."""

    row: Row
    seconds: Timing


def measured(report: Report) -> list[Measured]:
    """In the order of the report."""
    return [Measured(row, row.seconds) for row in report.rows if row.seconds is not None]


def is_ours(row: Row) -> bool:
    """Whether a Gatherer has done it, and no peer."""
    return row.codec is not None


def grouped(pairs: Iterable[tuple[K, Measured]]) -> Mapping[K, Sequence[Measured]]:
    """Groups what has the same key, in the order in which the keys come."""
    groups: dict[K, list[Measured]] = {}
    for key, each in pairs:
        groups.setdefault(key, []).append(each)
    return groups


def by_payload_and_ranks(report: Report) -> Mapping[tuple[str, int], Sequence[Measured]]:
    """What took turns with each other, and can be compared."""
    return grouped(((each.row.payload, each.row.world_size), each) for each in measured(report))


def quartiles_text(seconds: Timing) -> str:
    """Says "1.2 ms - 1.4 ms"."""
    return f"{seconds_text(seconds.lower_quartile)} - {seconds_text(seconds.upper_quartile)}"


def times_faster_text(row: Row) -> str:
    """How many times faster than torch's; "-" where that was not measured."""
    return "-" if row.times_faster is None else f"{row.times_faster:.2f}"


def where(payload: str, world_size: int) -> str:
    """Says "metrics, 2 ranks"."""
    return f"{payload}, {count(world_size, 'rank')}"
