"""What an exchange of slots costs without codec and protocol: `python -m gather_bench.transport_rounds`.

Every rank fills its slot by one copy, and reads nothing of what arrives. Medians of the slowest rank.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

from gather_bench.interleaved import slowest_rank_medians
from gather_bench.local_ranks import run_local_ranks
from gather_core.local_store import ScopedStore
from gather_core.registry import get_transport
from gather_core.transport import Transport

_CALLS = {256: 200, 150_000: 50, 16 << 20: 3}
"""Calls behind one barrier, by payload in bytes."""
_ROUNDS = 15
_TIMEOUT_S = 120.0


def measure(world_size: int, spec: str) -> dict[int, float]:
    """Starts local ranks; returns seconds per exchange by payload in bytes."""
    medians: dict[int, float] = run_local_ranks(world_size, _measure_on_rank, spec)
    return medians


def _measure_on_rank(spec: str) -> dict[int, float]:
    medians = {}
    for nbytes, calls in _CALLS.items():
        transport = _open(spec, nbytes)
        try:
            way = _exchange_of(transport, nbytes)
            medians[nbytes] = slowest_rank_medians({"exchange": way}, _ROUNDS, calls)["exchange"]
        finally:
            transport.close()
    return medians


def _open(spec: str, nbytes: int) -> Transport:
    transport = get_transport(spec)
    context = transport.join(None)
    store = ScopedStore(f"transport_rounds/{nbytes}", context.store)
    hosts = (0,) * context.world_size
    context = replace(context, store=store, scope=f"transport_rounds/{nbytes}", hosts=hosts)
    transport.open(context, (nbytes + 63) // 64 * 64, timeout_s=_TIMEOUT_S)
    return transport


def _exchange_of(transport: Transport, nbytes: int) -> Callable[[], object]:
    payload = bytes(nbytes)

    def exchange() -> object:
        transport.slot(nbytes)[:nbytes] = payload
        return transport.all_gather_slots(nbytes, timeout_s=_TIMEOUT_S)

    return exchange


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--transport", default="shm", help="a spec")
    parser.add_argument("--world-size", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    for world_size in arguments.world_size:
        for nbytes, seconds in measure(world_size, arguments.transport).items():
            print(f"{arguments.transport}, {world_size} ranks, {nbytes:>9} bytes: {seconds * 1e6:9.1f} us")


if __name__ == "__main__":
    main()
