"""What a run has measured, as values and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any, Literal, Self

from gather_bench.bench.options import Options

SCHEMA_VERSION = 1
"""Goes up when a field changes its meaning or goes away; not when one is added."""

BASELINE = "torch_all_gather_object"
"""The way to which all others of a payload are compared."""

Status = Literal["measured", "unavailable", "refused", "failed", "wrong"]


@dataclass(frozen=True)
class Environment:
    """Where the run took place, without naming any machine."""

    gather_core: str
    torch: str
    python: str
    platform: str
    cpu_count: int
    """CPUs that rank 0 may use."""
    world_size: int
    hosts: int
    backend: str
    """Of the job's default group."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call on the slowest rank, over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: tuple[float, ...]
    """In the order in which they were run."""

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Self:
        """Sums up at least one round."""
        if len(rounds) == 1:
            return cls(rounds[0], rounds[0], rounds[0], tuple(rounds))
        lower, middle, upper = quantiles(rounds, n=4, method="inclusive")
        return cls(middle, lower, upper, tuple(rounds))


@dataclass(frozen=True)
class Row:
    """One way to gather one payload: measured, or why not."""

    payload: str
    payload_nbytes: int | None
    """Of the object as a plain pickle, on the rank with the largest; None where pickle cannot on some rank."""
    way: str
    """`gatherer`, or the name of a peer."""
    codec: str | None
    """None for a peer."""
    transport: str | None
    transport_used: str | None
    """What `auto` has chosen; None where none could be opened. Of a peer, where the job has several backends: the one
    that carries it, which is that for the CPU."""
    status: Status
    """`unavailable`: cannot be used here. `refused`: this payload cannot be encoded. `failed`: it raised, or the
    payload could not be made. `wrong`: the objects that came out are not those that were handed in. All but the first
    are about this payload alone."""
    reason: str | None = None
    encoded_nbytes: int | None = None
    """What a rank hands to the transport or collective, on the rank with the most."""
    gather_rounds: int | None = None
    """Rounds per call, 1 or 2; None for a peer."""
    calls: int | None = None
    """Calls behind one barrier."""
    seconds: Timing | None = None
    times_faster: float | None = None
    """The median of the baseline over this one's; None where one of them was not measured."""

    @property
    def label(self) -> str:
        """Names the way for people."""
        if self.codec is None:
            return self.way if self.transport_used is None else f"{self.way} ({self.transport_used})"
        chosen = f" ({self.transport_used})" if self.transport_used not in (None, self.transport) else ""
        return f"{self.codec}, {self.transport}{chosen}"


@dataclass(frozen=True)
class Report:
    """All of one run."""

    environment: Environment
    options: Options
    rows: tuple[Row, ...]

    @property
    def is_sound(self) -> bool:
        """Whether something was measured, and whatever was tried gave the right objects."""
        return self.has_measured and not any(row.status in ("failed", "wrong") for row in self.rows)

    @property
    def has_measured(self) -> bool:
        """Whether any row was measured."""
        return any(row.status == "measured" for row in self.rows)

    def to_json(self) -> str:
        """Writes it as JSON; docs/benchmarks.md describes the layout."""
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(document, indent=2) + "\n"
