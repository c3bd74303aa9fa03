"""Measuring: each case is made ready for a payload, checked once, and timed in turns with the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from gather_bench.bench.agreement import agree, attempt
from gather_bench.bench.cases import Case
from gather_bench.bench.payloads import Payload
from gather_bench.bench.place import Place
from gather_bench.bench.progress import RunProgress
from gather_bench.bench.results import BASELINE, Row, Status, Timing
from gather_bench.bench.sent import Sent, send
from gather_bench.bench.split import measure_splits
from gather_bench.bench.ways import GathererWay, ReadyWay
from gather_bench.interleaved import fitting_calls, slowest_rank_rounds
from gather_bench.peers import torch_all_gather_object
from gather_bench.resident import give_idle_memory_back, peak_above_before


@dataclass(frozen=True)
class _Checked:
    """A case that is ready for a payload and gathers it rightly, or what is wrong."""

    case: Case
    ready: ReadyWay | None
    status: Status = "measured"
    reason: str | None = None


def run_cases(
    cases: Sequence[Case],
    payloads: Mapping[str, Payload],
    *,
    rounds: int,
    calls: int | None = None,
    progress: RunProgress | None = None,
) -> list[Row]:
    """(all ranks of the default group) Measures every case on every payload.

    Args:
        cases: The same in the same order on every rank.
        payloads: By name, likewise.
        rounds: How many rounds are counted; at least 1.
        calls: Calls behind one barrier; None: for each case, what fills a round of some 30 ms, 2 to 20,000.
        progress: Is told on every rank what comes next, and after each round.

    Returns:
        A row per payload and case, in this order, the same on every rank. What cannot be measured is a row that says
        why; a case that fails while the clock runs, having worked before, raises what it raised.
    """
    place = Place.find()
    progress = progress or RunProgress(False, len(payloads), rounds + 1)
    rows: list[Row] = []
    for name, payload in payloads.items():
        progress.payload(name)
        sent, problem = send(name, payload)
        if sent is None:
            rows += [_row_without_object(name, case, problem, place) for case in cases]
        else:
            rows += _run_payload(sent, cases, place, rounds, calls, progress)
    return rows


def _run_payload(
    sent: Sent, cases: Sequence[Case], place: Place, rounds: int, calls: int | None, progress: RunProgress
) -> list[Row]:
    checked = [_check(case, sent) for case in cases]
    ways = {str(index): each.ready for index, each in enumerate(checked) if each.ready is not None}
    calls_of = {index: calls or fitting_calls(way) for index, way in ways.items()}
    times = slowest_rank_rounds(ways, rounds, calls_of, after_round=progress.round)
    timings = {int(index): Timing.of(seconds) for index, seconds in times.items()}
    baseline = next((timings[i].median for i, each in enumerate(checked) if i in timings and _is_baseline(each)), None)
    gatherers = {index: way for index, way in ways.items() if isinstance(way, GathererWay)}
    splits = measure_splits(gatherers, calls_of, place.hosts)
    rows = []
    for index, each in enumerate(checked):
        fields = _fields(sent.name, sent.nbytes, each.case, place)
        if each.ready is None:
            rows.append(Row(**fields, status=each.status, reason=each.reason))
        else:
            row = _measured_row(fields, each.ready, timings[index], calls_of[str(index)], baseline)
            rows.append(replace(row, split=splits.get(str(index))))
    return rows


def _check(case: Case, sent: Sent) -> _Checked:
    """(all ranks) Makes the case ready for the payload and lets it gather once."""
    make_ready = case.make_ready
    if make_ready is None:
        return _Checked(case, None, "unavailable", case.unavailable)
    ready = attempt(lambda: make_ready(sent.obj))
    if ready.value is None or ready.problem is not None:
        return _Checked(case, None, "refused", ready.problem)
    way = ready.value
    returned = attempt(way)
    if returned.problem is not None:
        return _Checked(case, None, "failed", returned.problem)
    wrong = attempt(lambda: sent.first_difference(way.objects(returned.value)))
    problem = wrong.problem or agree(wrong.value)
    return _Checked(case, None, "wrong", problem) if problem is not None else _Checked(case, way)


def _is_baseline(checked: _Checked) -> bool:
    return checked.case.way == BASELINE


def _measured_row(fields: dict[str, Any], ready: ReadyWay, timing: Timing, calls: int, baseline: float | None) -> Row:
    """(all ranks) Adds what is measured when all ways have been timed: sizes and peak memory."""
    encoded = torch_all_gather_object(ready.encoded_nbytes)
    fitting = torch_all_gather_object(ready.fitting_slot_nbytes)
    return Row(
        **fields,
        status="measured",
        encoded_nbytes=max(encoded),
        received_nbytes=sum(encoded),
        fitting_slot_nbytes=None if None in fitting else max(fitting),
        gather_rounds=ready.gather_rounds(),
        calls=calls,
        seconds=timing,
        times_faster=baseline / timing.median if baseline else None,
        peak_nbytes=_largest_peak(ready),
    )


def _largest_peak(ready: ReadyWay) -> int | None:
    """(all ranks) Of one call, on the rank with the most."""
    give_idle_memory_back()
    dist.barrier()
    peaks = torch_all_gather_object(peak_above_before(ready))
    return None if None in peaks else max(peaks)


def _row_without_object(name: str, case: Case, reason: str | None, place: Place) -> Row:
    fields = _fields(name, None, case, place)
    if case.make_ready is None:
        return Row(**fields, status="unavailable", reason=case.unavailable)
    return Row(**fields, status="failed", reason=reason)


def _fields(payload: str, nbytes: int | None, case: Case, place: Place) -> dict[str, Any]:
    """What names a row."""
    return {
        "payload": payload,
        "payload_nbytes": nbytes,
        "world_size": place.world_size,
        "hosts": place.hosts,
        "way": case.way,
        "codec": case.codec,
        "transport": case.transport,
        "transport_used": case.transport_used,
    }
