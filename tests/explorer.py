"""Goes through every state that a model can come to."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

S = TypeVar("S", bound=Hashable)


def first_fault(start: S, successors: Callable[[S], Iterable[tuple[str, S]]]) -> str:
    """Returns the first fault that is found, or nothing.

    Args:
        start: A state.
        successors: From a state, all that it may be followed by, and what is wrong with that, or nothing.
    """
    seen, waiting = {start}, [start]
    while waiting:
        for fault, successor in successors(waiting.pop()):
            if fault:
                return fault
            if successor not in seen:
                seen.add(successor)
                waiting.append(successor)
    return ""
