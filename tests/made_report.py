"""Reports of `gather bench` that were not measured: made from a seed, so that they are the same every time."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from gather_bench.bench.options import Options
from gather_bench.bench.results import BASELINE, Environment, Report, Row, Split, Timing

ENVIRONMENT = Environment(
    gather_core="0.1.0",
    torch="2.13.0",
    python="3.11.9",
    platform="Linux x86_64",
    cpu_model="A processor",
    cpu_count=2,
    world_sizes=(2,),
    hosts=1,
    backend="gloo",
    launcher="local",
    date="2025-01-31",
)
NBYTES = {"metrics": 159, "dpr_step": 147_900, "array:1MiB": 1_048_720}
PEERS = (BASELINE, "raw_collective", "raw_copy")
_SECONDS = {"pickle": 1.0, "msgpack": 1.2, "raw": 0.8, "gloo": 200e-6, "shm": 80e-6, "auto": 80e-6}


def made_report(
    *,
    codecs: tuple[str, ...] = ("pickle", "msgpack"),
    transports: tuple[str, ...] = ("gloo", "shm"),
    payloads: tuple[str, ...] = tuple(NBYTES),
    world_sizes: tuple[int, ...] = (2,),
    peers: tuple[str, ...] = PEERS,
    rounds: int = 15,
    noise: float = 0.03,
    launches: int = 1,
    launch_noise: float = 0.0,
    seed: int = 0,
    slower: Mapping[tuple[str, str], float] | None = None,
) -> Report:
    """Rounds that scatter by `noise`, all ways of a round together by as much again.

    Launches of each way scatter by `launch_noise` beside.

    Args:
        codecs: As of the options.
        transports: Likewise.
        payloads: Names of `NBYTES`.
        world_sizes: In the order of the rows.
        peers: Which were measured.
        rounds: How many.
        noise: Standard deviation of a round's logarithm.
        launches: How many have run the rounds, equally many each.
        launch_noise: Standard deviation of a launch's logarithm.
        seed: Of all that is random.
        slower: By codec and transport, how many times longer it takes.
    """
    random = Random(seed)
    ways = [(codec, transport) for codec in codecs for transport in transports]
    rows = []
    for world_size in world_sizes:
        for payload in payloads:
            common = [random.lognormvariate(0, noise) for _ in range(rounds)]

            def timing(seconds: float, common: list[float] = common) -> Timing:
                of_launches = [random.lognormvariate(0, launch_noise) if launch_noise else 1.0 for _ in range(launches)]
                of_rounds = [each * random.lognormvariate(0, noise) for each in common]
                part = rounds // launches
                return Timing.of(
                    [seconds * of_launches[number // part] * each for number, each in enumerate(of_rounds)],
                    [part] * launches,
                )

            cost = (1 + NBYTES[payload] / 2e4) * world_size / 2
            theirs = {peer: timing(300e-6 * cost / (1 + number)) for number, peer in enumerate(peers)}
            for codec, transport in ways:
                planted = (slower or {}).get((codec, transport), 1.0)
                seconds = timing(_SECONDS[codec] * _SECONDS[transport] * cost * planted)
                rows.append(_row(payload, world_size, codec, transport, seconds, theirs.get(BASELINE)))
            rows += [
                _row(payload, world_size, peer, None, seconds, theirs[BASELINE]) for peer, seconds in theirs.items()
            ]
    options = Options(
        codecs=codecs, transports=transports, payloads=payloads, rounds=rounds, peers=bool(peers), launches=launches
    )
    return Report(replace(ENVIRONMENT, world_sizes=world_sizes), options, tuple(rows))


def _row(
    payload: str, world_size: int, codec: str, transport: str | None, seconds: Timing, baseline: Timing | None
) -> Row:
    """A peer has no transport, and its name where the codec would be."""
    ours = transport is not None
    quarter = seconds.median / 4
    return Row(
        payload=payload,
        payload_nbytes=NBYTES[payload],
        world_size=world_size,
        hosts=1,
        way="gatherer" if ours else codec,
        codec=codec if ours else None,
        transport=transport,
        transport_used="shm" if transport == "auto" else transport,
        status="measured",
        encoded_nbytes=NBYTES[payload],
        received_nbytes=NBYTES[payload] * world_size,
        gather_rounds=1 if ours else None,
        calls=10,
        seconds=seconds,
        times_faster=baseline.median / seconds.median if baseline else None,
        split=Split(quarter, quarter / 2, quarter, 1.5 * quarter) if ours else None,
        peak_nbytes=NBYTES[payload] * 2 if ours else None,
    )
