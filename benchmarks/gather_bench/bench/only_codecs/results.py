"""What a run over codecs alone has measured, as values and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gather_bench.bench.results import Timing
from gather_bench.bench.workloads import WORKLOADS

SCHEMA_VERSION = 1
"""Goes up when a field changes its meaning or goes away; not when one is added."""

Status = Literal["measured", "refused", "wrong", "failed"]


@dataclass(frozen=True)
class CodecOptions:
    """What a run was asked to measure: every codec on every payload."""

    codecs: tuple[str, ...] = ("pickle", "auto", "cloudpickle", "msgpack", "raw", "pickle+zstd", "msgpack+zstd")
    payloads: tuple[str, ...] = tuple(WORKLOADS)
    rounds: int = 15
    """Counted rounds; one more warms up."""
    calls: int | None = None
    """Calls in a row; None: as many as fill a round of some 20 ms, 1 to 5,000."""
    peers: bool = True
    """Whether pickle and msgpack without gather-core are measured too."""


@dataclass(frozen=True)
class Machine:
    """Where the run took place, without naming any machine."""

    cpu: str
    """Its model, as the system calls it."""
    cpu_count: int
    """CPUs that the process may use."""
    platform: str
    versions: Mapping[str, str]
    """Of Python, gather-core and the libraries that do the work."""


@dataclass(frozen=True)
class CodecRow:
    """One way to encode one payload: measured, or why not."""

    payload: str
    way: str
    """The spec of a codec, or the name of a peer."""
    is_peer: bool
    status: Status
    """`refused`: it does not encode this. `wrong`: what was decoded is not what was encoded. `failed`: decode raised,
    or the payload could not be made."""
    reason: str | None = None
    encoded_nbytes: int | None = None
    """Of all frames together."""
    calls: tuple[int, int] | None = None
    """Calls of encode and of decode in a row."""
    encode: Timing | None = None
    """Seconds per call."""
    decode: Timing | None = None
    """Seconds per call, from frames in memory that is lent: what the object keeps of it is copied."""


@dataclass(frozen=True)
class CodecReport:
    """All of one run."""

    machine: Machine
    options: CodecOptions
    rows: tuple[CodecRow, ...]
    """By payload, then by way, in the order of the options, the peers last."""

    @property
    def is_sound(self) -> bool:
        """Whether something was measured, and no codec gave a wrong object or failed; what peers lose is a result."""
        return self.has_measured and not any(
            row.status == "failed" or (row.status == "wrong" and not row.is_peer) for row in self.rows
        )

    @property
    def has_measured(self) -> bool:
        """Whether any row was measured."""
        return any(row.status == "measured" for row in self.rows)

    def to_json(self) -> str:
        """Writes it as JSON; docs/benchmarks.md describes the layout."""
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(document, indent=2) + "\n"
