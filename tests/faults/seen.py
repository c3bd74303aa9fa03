"""What the ranks saw of a fault."""

from collections.abc import Sequence
from dataclasses import dataclass

from faults.traces import Traces


@dataclass(frozen=True)
class Seen:
    """One rank's view."""

    rank: int
    error: str
    """Name of its class; empty where there was none."""
    named: Sequence[int]
    """The ranks that it names."""
    text: str
    at_s: float
    """When, by the machine's clock."""
    afterwards: str


@dataclass(frozen=True)
class Process:
    """What a process that has survived says: of its ranks, and of itself."""

    seen: Sequence[Seen]
    left: Traces
