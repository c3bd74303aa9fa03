"""Measuring: each case is made ready for a payload, checked once, and timed in turns with the others."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import cloudpickle
import torch.distributed as dist

from gather_bench.bench.agreement import agree, attempt, largest
from gather_bench.bench.cases import Case
from gather_bench.bench.payloads import Payload
from gather_bench.bench.results import BASELINE, Row, Status, Timing
from gather_bench.bench.ways import ReadyWay
from gather_bench.interleaved import Way, slowest_rank_rounds, slowest_rank_s
from gather_bench.peers import torch_all_gather_object
from gather_core.exactness import difference, is_tensor, parts

_ROUND_S = 0.03
_MIN_CALLS = 2
_MAX_CALLS = 50
_PROBES = 3
_LONG_PROBE_S = 10 * _ROUND_S
"""A call that takes this long needs no second look: two of them are more than a round."""


@dataclass(frozen=True)
class _Sent:
    """One payload, on one rank."""

    name: str
    obj: Any
    objects: Sequence[Any]
    """Of all ranks, as they must come out."""
    nbytes: int | None
    """Of the largest as a plain pickle; None where pickle cannot on some rank."""


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
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """(all ranks of the default group) Measures every case on every payload.

    Args:
        cases: The same in the same order on every rank.
        payloads: By name, likewise.
        rounds: How many rounds are counted; at least 1.
        calls: Calls behind one barrier; None: for each case, what fills a round of some 30 ms, 2 to 50.
        tell: Called on every rank with a line about what comes next.

    Returns:
        A row per payload and case, in this order, the same on every rank. What cannot be measured is a row that says
        why; a case that fails while the clock runs, having worked before, raises what it raised.
    """
    rows: list[Row] = []
    for number, (name, payload) in enumerate(payloads.items(), 1):
        tell(f"[{number}/{len(payloads)}] {name}")
        rows += _run_payload(name, payload, cases, rounds, calls)
    return rows


def _run_payload(name: str, payload: Payload, cases: Sequence[Case], rounds: int, calls: int | None) -> list[Row]:
    sent, problem = _send(name, payload)
    if sent is None:
        return [_row_without_object(name, case, problem) for case in cases]
    checked = [_check(case, sent) for case in cases]
    ways = {str(index): each.ready for index, each in enumerate(checked) if each.ready is not None}
    calls_of = {index: calls or fitting_calls(way) for index, way in ways.items()}
    times = slowest_rank_rounds(ways, rounds, calls_of)
    timings = {int(index): Timing.of(seconds) for index, seconds in times.items()}
    baseline = next((timings[i].median for i, each in enumerate(checked) if i in timings and _is_baseline(each)), None)
    return [
        _row(sent, each, timings.get(index), calls_of.get(str(index)), baseline) for index, each in enumerate(checked)
    ]


def _send(name: str, payload: Payload) -> tuple[_Sent | None, str | None]:
    """(all ranks) Makes the objects, and tells all ranks what must come out; or returns why some rank cannot."""
    made = attempt(lambda: _make(payload))
    if made.value is None or made.problem is not None:
        return None, f"the payload cannot be made: {made.problem}"
    obj, encoded = made.value
    gathered = torch_all_gather_object(encoded)
    loaded = attempt(lambda: [cloudpickle.loads(each) for each in gathered])
    if loaded.value is None or loaded.problem is not None:
        return None, f"the payload cannot be sent: {loaded.problem}"
    objects = loaded.value
    objects[dist.get_rank()] = obj
    sizes = torch_all_gather_object(_pickled_nbytes(obj))
    return _Sent(name, obj, objects, None if None in sizes else max(sizes)), None


def _make(payload: Payload) -> tuple[Any, bytes]:
    """This rank's object, and as bytes, by value where pickle cannot name what is in it."""
    obj = payload(dist.get_rank())
    if any(map(_has_graph, parts(obj))):
        raise ValueError("it holds a tensor with a graph, of which each way keeps something else: detach() it")
    return obj, cloudpickle.dumps(obj)


def _has_graph(part: Any) -> bool:
    return is_tensor(part) and not part.is_leaf


def _pickled_nbytes(obj: Any) -> int | None:
    try:
        return len(pickle.dumps(obj))
    except Exception:
        return None


def _check(case: Case, sent: _Sent) -> _Checked:
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
    wrong = attempt(lambda: _first_difference(sent.objects, way.objects(returned.value)))
    problem = wrong.problem or agree(wrong.value)
    return _Checked(case, None, "wrong", problem) if problem is not None else _Checked(case, way)


def _first_difference(sent: Sequence[Any], got: Sequence[Any]) -> str | None:
    """Where a gathered list is not what it must be, on this rank."""
    if len(got) != len(sent):
        return f"{len(got)} objects came of {len(sent)} ranks"
    for rank, (one, other) in enumerate(zip(sent, got, strict=True)):
        if text := difference(other, one):
            return f"the object of rank {rank} came out different: {text}"
    return None


def fitting_calls(way: Way) -> int:
    """(all ranks) Calls that take about as long as a round should, on the slowest rank."""
    probes = [slowest_rank_s(way, 1)]
    while len(probes) < _PROBES and probes[0] < _LONG_PROBE_S:
        probes.append(slowest_rank_s(way, 1))
    return max(_MIN_CALLS, min(_MAX_CALLS, round(_ROUND_S / max(median(probes), 1e-9))))


def _is_baseline(checked: _Checked) -> bool:
    return checked.case.way == BASELINE


def _row(sent: _Sent, checked: _Checked, timing: Timing | None, calls: int | None, baseline: float | None) -> Row:
    """(all ranks) Only what was measured has sizes: what was refused never got so far."""
    case, ready = checked.case, checked.ready
    return Row(
        payload=sent.name,
        payload_nbytes=sent.nbytes,
        way=case.way,
        codec=case.codec,
        transport=case.transport,
        transport_used=case.transport_used,
        status=checked.status,
        reason=checked.reason,
        encoded_nbytes=largest(ready.encoded_nbytes) if ready else None,
        gather_rounds=ready.gather_rounds() if ready else None,
        calls=calls,
        seconds=timing,
        times_faster=baseline / timing.median if timing and baseline else None,
    )


def _row_without_object(name: str, case: Case, reason: str | None) -> Row:
    return Row(
        payload=name,
        payload_nbytes=None,
        way=case.way,
        codec=case.codec,
        transport=case.transport,
        transport_used=case.transport_used,
        status="unavailable" if case.make_ready is None else "failed",
        reason=case.unavailable if case.make_ready is None else reason,
    )
