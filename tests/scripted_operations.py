"""How ranks perform the steps of random scripts, and the troubles that they make on purpose."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from gather_core import DecodeError, Gatherer, RankFailedError, SlotOverflowError
from random_scripts import Outcome, Step, parcels, plain

_here = threading.local()


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


def _own(step: Step, rank: int) -> Any:
    """What this rank hands in."""
    if step.troubles.get(rank) == "encode":
        return Bad()
    return Rotten(rank, step.rotten[rank]) if rank in step.rotten else plain(step, rank)


def _own_parcels(step: Step, gatherer: Gatherer) -> list[Any]:
    trouble = step.troubles.get(gatherer.rank)
    *others, last = parcels(step, gatherer.rank, gatherer.world_size)
    return others if trouble == "count" else [*others, Bad() if trouble == "encode" else last]


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
        return Bad() if step.troubles.get(rank) == "encode" else plain(step, rank)

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
