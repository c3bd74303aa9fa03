"""Random scripts of operations in which ranks fail at random, and what must come of each step on each rank.

A script is a pure function of its seed, and so is every rank's outcome: the model here knows no transport.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

SLOT_NBYTES = 2048
_LARGE = "x" * 20_000
"""More than a slot holds, and less than `Limits` of the default allow."""
Outcome = tuple[str, Any]
"""("ok", value) or (name of the error, ranks that it names)."""

_TROUBLES: Mapping[str, Sequence[str]] = {
    "all_gather": ("encode", "tag", "timeout"),
    "all_gather_async": ("encode", "tag", "timeout"),
    "gather": ("encode", "tag", "root"),
    "gather_async": ("encode", "root"),
    "broadcast": ("encode", "tag", "root"),
    "broadcast_async": ("encode", "root"),
    "scatter": ("encode", "count", "root"),
    "all_to_all": ("encode", "count", "tag"),
    "reduce": ("no number", "missing", "tag"),
    "barrier": ("tag", "timeout"),
    "run": ("raise", "encode", "tag"),
    "iter_gather": ("raise", "encode", "root"),
}
"""What can go wrong on a rank in each operation."""
_OF_THE_ROOT = {("broadcast", "encode"), ("broadcast_async", "encode"), ("scatter", "encode"), ("scatter", "count")}
"""What only matters on the root, as the others hand in nothing."""
_CONFIRMED = ("all_gather", "gather", "broadcast")
"""Whose decoding fails on some ranks: it asks its thread which rank it is, so not those that decode in another one."""
_NEVER_LARGE = ("reduce", "barrier", "iter_gather")


@dataclass(frozen=True)
class Step:
    """One operation on all ranks."""

    operation: str
    number: int
    root: int
    troubles: Mapping[int, str]
    large: frozenset[int]
    """The ranks that hand in more than a slot holds."""
    rotten: Mapping[int, frozenset[int]]
    """Ranks whose object cannot be decoded, and where."""
    confirm: bool
    lazy: bool
    strict: bool
    """Through the Gatherer with overflow="error"."""


def script(seed: int, world_size: int, num_steps: int = 5) -> list[Step]:
    """The steps of a script."""
    random = Random(seed)
    return [_step(random, number, world_size) for number in range(num_steps)]


def _step(random: Random, number: int, world_size: int) -> Step:
    operation = random.choice([*_TROUBLES])
    ranks = range(world_size)
    failing = random.sample(ranks, random.choice([0, 0, 1, 1, world_size]))
    strict = random.random() < 0.3
    large = frozenset(rank for rank in ranks if operation not in _NEVER_LARGE and random.random() < 0.2)
    rotten = {}
    if operation in _CONFIRMED and random.random() < 0.3:
        rotten[random.choice(ranks)] = frozenset(random.sample(ranks, random.randint(1, world_size)))
    return Step(
        operation,
        number,
        random.choice(ranks),
        {rank: random.choice(_TROUBLES[operation]) for rank in failing},
        large,
        rotten,
        confirm=bool(rotten) and random.random() < 0.5,
        lazy=operation == "all_gather" and random.random() < 0.2,
        strict=strict,
    )


def expected(step: Step, rank: int, world_size: int) -> Outcome:
    """What must come of a step on one rank."""
    troubles = {
        one: trouble
        for one, trouble in step.troubles.items()
        if one == step.root or (step.operation, trouble) not in _OF_THE_ROOT
    }
    missing = tuple(sorted(one for one, trouble in troubles.items() if trouble == "missing"))
    failing = tuple(sorted(troubles.keys() - set(missing)))
    if failing:
        are_calls = step.operation == "run" and all(trouble == "raise" for trouble in troubles.values())
        return "RemoteCallError" if are_calls else "RemoteEncodeError", failing
    if missing and len(missing) < world_size:
        return "ReduceError", missing
    sends_alone = step.operation.removesuffix("_async") in ("broadcast", "scatter")
    large = tuple(sorted((step.large & {step.root} if sends_alone else step.large) - step.rotten.keys()))
    if step.strict and large:
        return "SlotOverflowError", large
    return _decoded(step, rank, world_size)


def _decoded(step: Step, rank: int, world_size: int) -> Outcome:
    operation = step.operation
    decoding = {step.root} if operation == "gather" else set(range(world_size))
    senders = {step.root} if operation == "broadcast" else set(range(world_size))
    spoilt = {one for sender in senders & step.rotten.keys() for one in step.rotten[sender] & decoding}
    if step.confirm and spoilt:
        return "RemoteDecodeError", tuple(sorted(spoilt))
    if rank in spoilt:
        return "DecodeError", ()
    return "ok", _value(step, rank, world_size)


def _value(step: Step, rank: int, world_size: int) -> Any:
    ranks = range(world_size)
    is_root = rank == step.root
    match step.operation.removesuffix("_async"):
        case "all_gather":
            return [_arrives(step, one) for one in ranks]
        case "gather":
            return [_arrives(step, one) for one in ranks] if is_root else None
        case "broadcast":
            return _arrives(step, step.root)
        case "scatter":
            return parcels(step, step.root, world_size)[rank]
        case "all_to_all":
            return [parcels(step, one, world_size)[rank] for one in ranks]
        case "reduce":
            all_missing = len(step.troubles) == world_size
            return {"a": sum(ranks), **({} if all_missing else {"b": world_size})}
        case "barrier":
            return None
        case "run":
            return [plain(step, one) for one in ranks]
        case _:
            return sorted((one, f"{one}.{item}") for one in ranks for item in range(one + 1)) if is_root else []


def plain(step: Step, rank: int) -> Any:
    """What a rank hands in that has no trouble."""
    return step.number, rank, _LARGE if rank in step.large else ""


def _arrives(step: Step, rank: int) -> Any:
    return ("was rotten elsewhere", rank) if rank in step.rotten else plain(step, rank)


def parcels(step: Step, rank: int, world_size: int) -> list[Any]:
    """The same where there is one for each rank."""
    return [(*plain(step, rank), to) for to in range(world_size)]
