"""Random scripts of operations in which ranks fail at random, what must come of each step, and how ranks perform them.

A script is a pure function of its seed, and so is every rank's outcome: the model here knows no transport.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn

from gather_core import DecodeError, Gatherer, RankFailedError, SlotOverflowError

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

_here = threading.local()


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


class TroubleError(Exception):
    """Raised on purpose."""


class Bad:
    """Cannot be pickled."""

    def __reduce__(self) -> NoReturn:
        raise TroubleError("not for the wire")


class Rotten:
    """Can be pickled; on some ranks it cannot be unpickled."""

    def __init__(self, sender: int, where: frozenset[int]) -> None:
        self.sender = sender
        self.where = where

    def __reduce__(self) -> tuple[Callable[..., object], tuple[int, frozenset[int]]]:
        return _unpickled, (self.sender, self.where)


def _unpickled(sender: int, where: frozenset[int]) -> tuple[str, int]:
    if _here.rank in where:
        raise TroubleError("rotten")
    return "was rotten elsewhere", sender


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


def perform(step: Step, gatherer: Gatherer) -> Outcome:
    """(all ranks) Performs one step; returns what came of it here."""
    _here.rank = gatherer.rank
    try:
        return "ok", _OPERATIONS[step.operation](gatherer, step)
    except (RankFailedError, SlotOverflowError) as exc:
        named = exc.failures if isinstance(exc, RankFailedError) else exc.nbytes
        return type(exc).__name__, tuple(sorted(named))
    except DecodeError:
        return "DecodeError", ()


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
            return _parcels(step, step.root, world_size)[rank]
        case "all_to_all":
            return [_parcels(step, one, world_size)[rank] for one in ranks]
        case "reduce":
            all_missing = len(step.troubles) == world_size
            return {"a": sum(ranks), **({} if all_missing else {"b": world_size})}
        case "barrier":
            return None
        case "run":
            return [_plain(step, one) for one in ranks]
        case _:
            return sorted((one, f"{one}.{item}") for one in ranks for item in range(one + 1)) if is_root else []


def _plain(step: Step, rank: int) -> Any:
    return step.number, rank, _LARGE if rank in step.large else ""


def _arrives(step: Step, rank: int) -> Any:
    return ("was rotten elsewhere", rank) if rank in step.rotten else _plain(step, rank)


def _own(step: Step, rank: int) -> Any:
    """What this rank hands in."""
    if step.troubles.get(rank) == "encode":
        return Bad()
    return Rotten(rank, step.rotten[rank]) if rank in step.rotten else _plain(step, rank)


def _parcels(step: Step, rank: int, world_size: int) -> list[Any]:
    return [(*_plain(step, rank), to) for to in range(world_size)]


def _own_parcels(step: Step, gatherer: Gatherer) -> list[Any]:
    trouble = step.troubles.get(gatherer.rank)
    parcels = _parcels(step, gatherer.rank, gatherer.world_size)
    return parcels[:-1] if trouble == "count" else [*parcels[:-1], Bad()] if trouble == "encode" else parcels


def _options(step: Step, rank: int) -> dict[str, Any]:
    """Tag and timeout, right or wrong."""
    trouble = step.troubles.get(rank)
    return {"tag": 5 if trouble == "tag" else "", "timeout_s": -1 if trouble == "timeout" else None}


def _root(step: Step, rank: int) -> Any:
    return "nowhere" if step.troubles.get(rank) == "root" else step.root


def _all_gather(gatherer: Gatherer, step: Step) -> Any:
    own, options = _own(step, gatherer.rank), _options(step, gatherer.rank)
    if step.lazy and not step.confirm:
        return [*gatherer.all_gather(own, lazy=True, **options)]
    return gatherer.all_gather(own, confirm=step.confirm, **options)


def _all_gather_async(gatherer: Gatherer, step: Step) -> Any:
    own = _own(step, gatherer.rank)
    return _awaited(gatherer.all_gather_async(own, **_options(step, gatherer.rank)))


def _gather(gatherer: Gatherer, step: Step) -> Any:
    rank = gatherer.rank
    return gatherer.gather(_own(step, rank), _root(step, rank), confirm=step.confirm, **_options(step, rank))


def _gather_async(gatherer: Gatherer, step: Step) -> Any:
    rank = gatherer.rank
    return _awaited(gatherer.gather_async(_own(step, rank), _root(step, rank)))


def _broadcast(gatherer: Gatherer, step: Step) -> Any:
    rank = gatherer.rank
    return gatherer.broadcast(_own(step, rank), _root(step, rank), confirm=step.confirm, **_options(step, rank))


def _broadcast_async(gatherer: Gatherer, step: Step) -> Any:
    rank = gatherer.rank
    return _awaited(gatherer.broadcast_async(_own(step, rank), _root(step, rank)))


def _awaited(future: Any) -> Any:
    return future.result(60)


def _scatter(gatherer: Gatherer, step: Step) -> Any:
    objs = _own_parcels(step, gatherer) if gatherer.rank == step.root else None
    return gatherer.scatter(objs, _root(step, gatherer.rank))


def _reduce(gatherer: Gatherer, step: Step) -> Any:
    trouble = step.troubles.get(gatherer.rank)
    metrics: dict[str, Any] = {"a": "text" if trouble == "no number" else gatherer.rank, "b": 1}
    if trouble == "missing":
        del metrics["b"]
    return gatherer.reduce(metrics, **_options(step, gatherer.rank))


def _run(gatherer: Gatherer, step: Step) -> Any:
    rank = gatherer.rank

    def function() -> Any:
        if step.troubles.get(rank) == "raise":
            raise TroubleError("in the function")
        return Bad() if step.troubles.get(rank) == "encode" else _plain(step, rank)

    return gatherer.run(function, **_options(step, rank))


def _iter_gather(gatherer: Gatherer, step: Step) -> Any:
    rank = gatherer.rank

    def items() -> Any:
        if step.troubles.get(rank) == "raise":
            raise TroubleError("in the items")
        for item in range(rank + 1):
            yield Bad() if step.troubles.get(rank) == "encode" else f"{rank}.{item}"

    return sorted(gatherer.iter_gather(items(), _root(step, rank)))


_OPERATIONS: Mapping[str, Callable[[Gatherer, Step], Any]] = {
    "all_gather": _all_gather,
    "all_gather_async": _all_gather_async,
    "gather": _gather,
    "gather_async": _gather_async,
    "broadcast": _broadcast,
    "broadcast_async": _broadcast_async,
    "scatter": _scatter,
    "all_to_all": lambda gatherer, step: gatherer.all_to_all(
        _own_parcels(step, gatherer), **_options(step, gatherer.rank)
    ),
    "reduce": _reduce,
    "barrier": lambda gatherer, step: gatherer.barrier(**_options(step, gatherer.rank)),
    "run": _run,
    "iter_gather": _iter_gather,
}
