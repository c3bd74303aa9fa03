"""What cannot be in a report that was measured, and so is in one that was damaged or made by hand."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gather_bench.bench.results import Environment, Report, Row, Timing


def damages(report: "Report") -> Iterator[str]:
    """Says of each number that cannot be where it is and why; the types are right already."""
    yield from _of_environment(report.environment)
    yield from _too_small("options", 1, rounds=report.options.rounds, launches=report.options.launches)
    for number, row in enumerate(report.rows):
        yield from _of_row(f"rows.{number}", row)


def _of_environment(where: "Environment") -> Iterator[str]:
    if not where.world_sizes:
        yield "environment.world_sizes is empty"
    threads = where.threads_per_core
    yield from _too_small("environment", 1, cpu_count=where.cpu_count, hosts=where.hosts, threads_per_core=threads)
    for world_size in where.world_sizes:
        yield from _too_small("environment", 1, world_sizes=world_size)


def _of_row(name: str, row: "Row") -> Iterator[str]:
    yield from _too_small(name, 1, world_size=row.world_size, hosts=row.hosts, calls=row.calls)
    yield from _too_small(name, 0, payload_nbytes=row.payload_nbytes, encoded_nbytes=row.encoded_nbytes)
    yield from _too_small(name, 0, received_nbytes=row.received_nbytes, fitting_slot_nbytes=row.fitting_slot_nbytes)
    if (row.status == "measured") != (row.seconds is not None):
        yield f"{name}: a row has seconds where its status is measured, and nowhere else"
    elif row.seconds is not None:
        if row.encoded_nbytes is None:
            yield f"{name}.encoded_nbytes is null in a row that was measured"
        yield from _of_timing(f"{name}.seconds", row.seconds)
    if row.times_faster is not None:
        yield from _not_positive(f"{name}.times_faster", [row.times_faster])
    if row.split is not None:
        parts = (row.split.encode, row.split.wait, row.split.transfer, row.split.decode)
        if not all(part is None or 0 <= part < math.inf for part in parts):
            yield f"{name}.split has what is no time"


def _of_timing(name: str, seconds: "Timing") -> Iterator[str]:
    quartiles = (seconds.lower_quartile, seconds.median, seconds.upper_quartile)
    yield from _not_positive(name, [*quartiles, *seconds.rounds])
    if not seconds.rounds:
        yield f"{name}.rounds is empty"
    if seconds.launches and (min(seconds.launches) < 1 or sum(seconds.launches) != len(seconds.rounds)):
        yield f"{name}.launches does not add up to its rounds"


def _not_positive(name: str, values: Iterable[float]) -> Iterator[str]:
    for value in values:
        if not 0 < value < math.inf:
            yield f"{name} has {value}, which is not a positive finite number"


def _too_small(name: str, least: int, **values: int | None) -> Iterator[str]:
    for field, value in values.items():
        if value is not None and value < least:
            yield f"{name}.{field} is {value}, less than {least}"
