"""What a job with the measured payloads should use, and the settings file that says so."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from gather_bench.bench.publishing import NothingToWriteError
from gather_bench.bench.results import Recommendation, Report, Row, Timing
from gather_bench.bench.wording import count, listing
from gather_core.codec import Trust
from gather_core.registry import get_codec

MUCH_SLOWER = 1.5
"""A codec that builds data only is named beside the recommended one, unless it takes more times as long than this."""
LARGEST_SLOT_NBYTES = 64 * 1024
"""Slots are made no larger than this: a transport may send them whole, also where there is little in them."""

_AUTHOR = "gather bench"
"""How the first comment of a settings file begins."""

_Pair = tuple[str, str]
_Workload = tuple[str, int]


def with_recommendation(report: Report) -> Report:
    """Returns the report with what follows from all its rows."""
    return replace(report, recommendation=recommend(report.rows, report.options.slot_nbytes))


def recommend(rows: Sequence[Row], slot_nbytes: int) -> Recommendation | None:
    """Compares the Gatherers over all payloads and world sizes, each of which counts alike.

    Args:
        rows: Of one report.
        slot_nbytes: With what slots they were measured.

    Returns:
        The pair of codec and transport with the least geometric mean of its slowdowns, of those that carried every
        payload; None where none did.
    """
    timings = _timings(rows)
    carriers = _carriers(rows)
    if not carriers:
        return None
    workloads = _workloads(rows)
    best = {
        workload: min(measured[workload].median for measured in timings.values() if workload in measured)
        for workload in workloads
    }
    slowdowns = {
        pair: geometric_mean(measured[workload].median / best[workload] for workload in workloads)
        for pair, measured in carriers.items()
    }
    codec, transport = pair = min(slowdowns, key=slowdowns.__getitem__)
    ties = [
        f"{codec} over {transport}"
        for codec, transport in slowdowns
        if (codec, transport) != pair and _cannot_be_told_from(timings[codec, transport], timings[pair])
    ]
    slot = _fitting_slot(rows, pair, slot_nbytes)
    found = Recommendation(codec, transport, slot, slowdowns[pair], ties=tuple(ties))
    data = [codec for codec, other in slowdowns if other == transport and _is_data(codec)]
    if _is_data(codec) or not data:
        return found
    data_codec = min(data, key=lambda codec: slowdowns[codec, transport])
    if slowdowns[data_codec, transport] > MUCH_SLOWER * slowdowns[pair]:
        return found
    return replace(found, data_codec=data_codec, data_slowdown=slowdowns[data_codec, transport])


def is_borne_out(found: Recommendation, rows: Sequence[Row]) -> bool:
    """Whether what it recommends has carried every payload."""
    return (found.codec, found.transport) in _carriers(rows)


def obstacle(rows: Sequence[Row]) -> str | None:
    """Says why nothing can be recommended, or returns None."""
    if _carriers(rows):
        return None
    carried = {workload for measured in _timings(rows).values() for workload in measured}
    left = [
        f"{payload} ({count(world_size, 'rank')})"
        for payload, world_size in _workloads(rows)
        if (payload, world_size) not in carried
    ]
    return f"no codec and transport carried {listing(left) if left else 'every payload'}"


def _workloads(rows: Sequence[Row]) -> Sequence[_Workload]:
    """What Gatherers were given to carry."""
    return list(dict.fromkeys((row.payload, row.world_size) for row in rows if row.codec is not None))


def _carriers(rows: Sequence[Row]) -> Mapping[_Pair, Mapping[_Workload, Timing]]:
    """The pairs that carried every payload between each number of ranks."""
    workloads = set(_workloads(rows))
    return {pair: measured for pair, measured in _timings(rows).items() if measured.keys() == workloads}


def _timings(rows: Sequence[Row]) -> Mapping[_Pair, Mapping[_Workload, Timing]]:
    timings: dict[_Pair, dict[_Workload, Timing]] = {}
    for row in rows:
        if row.codec is not None and row.transport is not None and row.seconds is not None:
            timings.setdefault((row.codec, row.transport), {})[row.payload, row.world_size] = row.seconds
    return timings


def _cannot_be_told_from(some: Mapping[_Workload, Timing], others: Mapping[_Workload, Timing]) -> bool:
    """Whether their quartiles overlap for every payload and world size."""
    return all(
        seconds.lower_quartile <= others[workload].upper_quartile
        and others[workload].lower_quartile <= seconds.upper_quartile
        for workload, seconds in some.items()
    )


def _is_data(codec: str) -> bool:
    return get_codec(codec).trust is Trust.DATA


def _fitting_slot(rows: Sequence[Row], pair: _Pair, slot_nbytes: int) -> int:
    """Enough for every payload that has needed a second exchange for want of a slot of reasonable size."""
    needed = [
        row.fitting_slot_nbytes
        for row in rows
        if (row.codec, row.transport) == pair and row.gather_rounds == 2 and row.fitting_slot_nbytes is not None
    ]
    return max([slot_nbytes, *(nbytes for nbytes in needed if nbytes <= LARGEST_SLOT_NBYTES)])


def reasons(found: Recommendation) -> list[str]:
    """Says in lines why, and what there is besides."""
    if found.slowdown == 1:
        lines = [f"{found.codec} over {found.transport} was the fastest of the Gatherers everywhere"]
    else:
        lines = [f"{found.codec} over {found.transport} takes {found.slowdown:.2f} x the fastest, over all payloads"]
    if found.ties:
        lines.append(f"so close that no difference can be told: {listing(found.ties)}")
    if found.data_codec is not None:
        lines.append(f"{found.data_codec}, with which decoding runs no code, takes {found.data_slowdown:.2f} x")
    return lines


def to_settings(report: Report) -> str:
    """Writes the recommendation as TOML for `Gatherer.from_settings`.

    Raises:
        NothingToWriteError: There is none.
    """
    found, where = report.recommendation, report.environment
    if found is None:
        raise NothingToWriteError(obstacle(report.rows) or "the report recommends nothing")
    sizes = "1 rank" if where.world_sizes == (1,) else f"{listing(where.world_sizes)} ranks"
    comments = [
        f"{_AUTHOR} {where.gather_core} on {where.date}: {sizes}, {count(where.hosts, 'host')}, {where.cpu_model}",
        f"payloads: {', '.join(report.options.payloads)}",
        *reasons(found),
    ]
    lines = [
        *(f"# {_printable(comment)}" for comment in comments),
        "[gather]",
        f"codec = {json.dumps(found.codec)}",
        f"transport = {json.dumps(found.transport)}",
        f"slot_nbytes = {found.slot_nbytes}",
    ]
    return "\n".join(lines) + "\n"


def may_be_replaced(path: Path) -> bool:
    """Whether there is no such file, or one that `to_settings` has written."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(f"# {_AUTHOR} ")
    except OSError:
        return True


def _printable(text: str) -> str:
    """TOML allows no line ends nor control characters in a comment."""
    return "".join(character if character.isprintable() else "?" for character in text)
