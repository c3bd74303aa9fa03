"""Measuring codecs: each way is checked once on a payload, then encode and decode of all ways are timed in turns."""

from collections.abc import Callable, Sequence
from typing import Any

from gather_bench.bench.agreement import in_one_line
from gather_bench.bench.only_codecs.machine import describe_machine
from gather_bench.bench.only_codecs.results import CodecOptions, CodecReport, CodecRow
from gather_bench.bench.only_codecs.turns import Call, Timings, time_in_turns
from gather_bench.bench.only_codecs.ways import CodecWay, EncodedPayload, codec_way, peer_ways
from gather_bench.bench.payloads import payload
from gather_core import CodecError
from gather_core.exactness import difference
from gather_core.registry import get_codec

_RANK = 0


def measure_codecs(options: CodecOptions, tell: Callable[[str], None] = lambda text: None) -> CodecReport:
    """Measures every codec on every payload of rank 0.

    Args:
        options: What to measure.
        tell: Called with a line about what comes next.

    Raises:
        GatherError: There is no such codec.
        PayloadError: There is no such payload.
    """
    ways = [codec_way(get_codec(spec)) for spec in options.codecs]
    if options.peers:
        ways += peer_ways()
    rows: list[CodecRow] = []
    for number, name in enumerate(options.payloads, 1):
        tell(f"[{number}/{len(options.payloads)}] {name}")
        try:
            obj = payload(name)(_RANK)
        except Exception as exc:
            reason = f"the payload cannot be made: {in_one_line(exc)}"
            rows += [CodecRow(name, way.name, way.is_peer, "failed", reason) for way in ways]
        else:
            rows += measure_ways(name, obj, ways, rounds=options.rounds, calls=options.calls)
    return CodecReport(describe_machine(), options, tuple(rows))


def measure_ways(
    name: str, obj: Any, ways: Sequence[CodecWay], *, rounds: int, calls: int | None = None
) -> list[CodecRow]:
    """Measures every way on one object; what cannot be measured is a row that says why.

    Args:
        name: The payload's, for the rows.
        obj: What to encode.
        ways: In the order of the rows.
        rounds: How many rounds are counted; at least 1.
        calls: Calls in a row; None: for each way, what fills a round.
    """
    checked = [(way, *_check(name, way, obj)) for way in ways]
    timed: dict[str, Call] = {}
    for way, _, ready in checked:
        if ready is not None:
            timed |= {_encode(way): ready.encode, _decode(way): ready.decode}
    times = time_in_turns(timed, rounds, calls)
    return [_row(name, way, ready, times) if ready is not None else problem for way, problem, ready in checked]


def _check(name: str, way: CodecWay, obj: Any) -> tuple[CodecRow, EncodedPayload | None]:
    """What is ready to be timed; where it is None, the row says what is wrong."""
    try:
        ready = way.make_ready(obj)
    except CodecError as exc:
        return CodecRow(name, way.name, way.is_peer, "refused", str(exc).partition("\n")[0]), None
    try:
        decoded = ready.decode()
    except Exception as exc:
        return CodecRow(name, way.name, way.is_peer, "failed", in_one_line(exc)), None
    problem = difference(decoded, obj)
    row = CodecRow(name, way.name, way.is_peer, "wrong", problem)
    return row, ready if problem is None else None


def _row(name: str, way: CodecWay, ready: EncodedPayload, times: Timings) -> CodecRow:
    (encode_calls, encode), (decode_calls, decode) = times[_encode(way)], times[_decode(way)]
    return CodecRow(
        name,
        way.name,
        way.is_peer,
        "measured",
        encoded_nbytes=ready.nbytes,
        calls=(encode_calls, decode_calls),
        encode=encode,
        decode=decode,
    )


def _encode(way: CodecWay) -> str:
    return f"encode {way.name}"


def _decode(way: CodecWay) -> str:
    return f"decode {way.name}"
