"""What the ranks of an episode do, and what every rank must get: a pure function of the episode."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np

from gather_core import Gatherer
from soak.script import Episode

_LARGEST_NBYTES = 8 << 20
_PATTERN_NBYTES = 61
"""A prime, so that bytes that arrive in another place are other bytes."""


@dataclass(frozen=True)
class Operation:
    """One call on all ranks, and what it must return."""

    name: str
    call: Callable[[Gatherer], Any]
    expected: Callable[[int], Any]
    """From a rank to its result."""


def operations(planned: Episode, world_size: int) -> list[Operation]:
    """What its ranks do, in this order."""
    random = Random(planned.seed ^ 0x5EED)
    is_raw = planned.codec.startswith("raw")
    kinds = [*_KINDS, *([] if is_raw else [_reduce])]
    made = []
    for number in range(planned.num_operations):
        sizes = [_size(random, planned.slot_nbytes) for _ in range(world_size)]
        objects = partial(_object, planned.seed, number, is_raw)
        made.append(random.choice(kinds)(random, [partial(objects, size) for size in sizes]))
    return made


def is_same(found: Any, expected: Any) -> bool:
    """Whether two results are equal, arrays and all."""
    if isinstance(expected, np.ndarray):
        return isinstance(found, np.ndarray) and found.dtype == expected.dtype and np.array_equal(found, expected)
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(is_same, found, expected))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(is_same(found[key], expected[key]) for key in expected)
        )
    return bool(found == expected)


def _size(random: Random, slot_nbytes: int) -> int:
    """Bytes of a blob: none, around the slot, or of any order of magnitude."""
    around = slot_nbytes + random.randint(-200, 200)
    any_order = int(2 ** random.uniform(0, _LARGEST_NBYTES.bit_length() - 1))
    return random.choice([0, around, any_order, min(any_order, 1000), min(any_order, 100_000)])


def _object(seed: int, number: int, is_raw: bool, nbytes: int, rank: int, item: int = 0) -> Any:
    """What a rank hands in."""
    key = f"{seed}/{number}/{rank}/{item}".encode()
    pattern = hashlib.blake2b(key, digest_size=_PATTERN_NBYTES).digest()
    blob = (pattern * (nbytes // _PATTERN_NBYTES + 1))[:nbytes]
    if is_raw:
        return blob
    return {"rank": rank, "item": item, "blob": blob, "array": np.frombuffer(blob[: nbytes // 8 * 8], np.int64)}


Objects = Sequence[Callable[..., Any]]
"""For each rank, a function of that rank (and item) that makes its object."""


def _own(objects: Objects, rank: int, item: int = 0) -> Any:
    return objects[rank](rank, item)


def _all(objects: Objects) -> list[Any]:
    return [_own(objects, rank) for rank in range(len(objects))]


def _all_gather(random: Random, objects: Objects) -> Operation:
    options: dict[str, Any] = random.choice([{}, {"lazy": True}, {"confirm": True}])

    def call(gatherer: Gatherer) -> Any:
        return [*gatherer.all_gather(_own(objects, gatherer.rank), **options)]

    return Operation(f"all_gather {options}", call, lambda rank: _all(objects))


def _gather(random: Random, objects: Objects) -> Operation:
    dst = random.randrange(len(objects))
    return Operation(
        "gather",
        lambda gatherer: gatherer.gather(_own(objects, gatherer.rank), dst),
        lambda rank: _all(objects) if rank == dst else None,
    )


def _broadcast(random: Random, objects: Objects) -> Operation:
    src = random.randrange(len(objects))
    return Operation(
        "broadcast",
        lambda gatherer: gatherer.broadcast(_own(objects, src) if gatherer.rank == src else None, src),
        lambda rank: _own(objects, src),
    )


def _parcels(objects: Objects, rank: int) -> list[Any]:
    return [_own(objects, rank, to) for to in range(len(objects))]


def _scatter(random: Random, objects: Objects) -> Operation:
    src = random.randrange(len(objects))
    return Operation(
        "scatter",
        lambda gatherer: gatherer.scatter(_parcels(objects, src) if gatherer.rank == src else None, src),
        lambda rank: _own(objects, src, rank),
    )


def _all_to_all(random: Random, objects: Objects) -> Operation:
    return Operation(
        "all_to_all",
        lambda gatherer: gatherer.all_to_all(_parcels(objects, gatherer.rank)),
        lambda rank: [_own(objects, peer, rank) for peer in range(len(objects))],
    )


def _reduce(random: Random, objects: Objects) -> Operation:
    scale = random.random()
    metrics: Callable[[int], Mapping[str, float]] = lambda rank: {"loss": scale / (rank + 1), "count": rank}  # noqa: E731
    everyone = [metrics(rank) for rank in range(len(objects))]
    total = {name: sum(each[name] for each in everyone) for name in everyone[0]}  # in rank order, as promised
    return Operation("reduce", lambda gatherer: gatherer.reduce(metrics(gatherer.rank)), lambda rank: total)


def _barrier(random: Random, objects: Objects) -> Operation:
    return Operation("barrier", lambda gatherer: gatherer.barrier(), lambda rank: None)


def _run(random: Random, objects: Objects) -> Operation:
    return Operation("run", lambda gatherer: gatherer.run(_own, objects, gatherer.rank), lambda rank: _all(objects))


def _iter_gather(random: Random, objects: Objects) -> Operation:
    dst = random.randrange(len(objects))
    counts = [random.randint(0, 6) for _ in objects]
    budget_nbytes = random.choice([10_000, 1 << 20, 64 << 20])

    def items(rank: int) -> Any:
        return (_own(objects, rank, item) for item in range(counts[rank]))

    def call(gatherer: Gatherer) -> Any:
        pairs = gatherer.iter_gather(items(gatherer.rank), dst, budget_nbytes=budget_nbytes)
        return sorted(pairs, key=lambda pair: pair[0])  # stable: those of one rank stay in their order

    return Operation(
        "iter_gather",
        call,
        lambda rank: [(peer, item) for peer in range(len(objects)) for item in items(peer)] if rank == dst else [],
    )


def _asynchronous(random: Random, objects: Objects) -> Operation:
    root = random.randrange(len(objects))

    def call(gatherer: Gatherer) -> Any:
        own = _own(objects, gatherer.rank)
        futures: list[Any] = [gatherer.all_gather_async(own), gatherer.gather_async(own, root)]
        futures.append(gatherer.broadcast_async(own, root))
        gatherer.barrier()
        return [future.result() for future in futures]

    return Operation(
        "asynchronous",
        call,
        lambda rank: [_all(objects), _all(objects) if rank == root else None, _own(objects, root)],
    )


_KINDS = [_all_gather, _gather, _broadcast, _scatter, _all_to_all, _barrier, _run, _iter_gather, _asynchronous]
