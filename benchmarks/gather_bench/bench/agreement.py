"""How the ranks of a run come to one view: what they have to say is exchanged on the job's own group."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from gather_bench.peers import torch_all_gather_object
from gather_core.errors import format_ranks, summarize

T = TypeVar("T")


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What became of a step that every rank tried."""

    value: T | None
    """Of this rank; None where it failed here."""
    problem: str | None
    """Why some ranks failed; the same on every rank."""


def attempt(step: Callable[[], T]) -> Attempt[T]:
    """(all ranks) Tries the step everywhere, then tells every rank where it failed; neither raises nor exits."""
    value: T | None = None
    problem: str | None = None
    try:
        value = step()
    except (Exception, SystemExit) as exc:
        problem = in_one_line(exc)
    return Attempt(value, agree(problem))


def agree(problem: str | None) -> str | None:
    """(all ranks) Returns the problems of all ranks in one text, or None where no rank has one."""
    ranks_by_problem: dict[str, list[int]] = {}
    for rank, text in enumerate(torch_all_gather_object(problem)):
        if text is not None:
            ranks_by_problem.setdefault(text, []).append(rank)
    if not ranks_by_problem:
        return None
    first, *others = ranks_by_problem.items()
    if not others and len(first[1]) == dist.get_world_size():
        return first[0]
    return "; ".join(f"{format_ranks(ranks)}: {text}" for text, ranks in (first, *others))


def in_one_line(exc: BaseException) -> str:
    """Without the traceback of another rank, which would name paths of its machine."""
    return summarize(exc).partition("\n")[0]


def largest(number: int) -> int:
    """(all ranks) Returns the largest number that any rank has."""
    numbers: list[Any] = torch_all_gather_object(number)
    return int(max(numbers))
