"""What a Gatherer has done so far, in numbers: of one rank, and of all ranks side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gather_core.errors import format_ranks


@dataclass(slots=True)
class TagStats:
    """Operations of one name and tag on one rank. Times are sums over the operations, in seconds."""

    operation: str
    tag: str
    operations: int = 0
    nbytes: int = 0
    """Sent by this rank, headers, tables, seals and padding included."""
    padding_nbytes: int = 0
    """What is neither header nor frame of that: frame tables, seals, and zeros up to the next multiple of 64."""
    second_rounds: int = 0
    encode_s: float = 0.0
    round_1_s: float = 0.0
    """The exchange of slots: waiting for the last rank to come, and the transfer, which one rank cannot tell apart."""
    round_2_s: float = 0.0
    decode_s: float = 0.0


@dataclass(slots=True)
class Stats:
    """Counts of one rank since construction; failed operations are not in them."""

    operations: int = 0
    second_rounds: int = 0
    """Operations in which some rank's payload did not fit in its slot."""
    sent_nbytes: int = 0
    """Payload bytes of this rank, headers included, each counted once however many peers got them."""
    largest_slot_nbytes: int = 0
    """The `slot_nbytes` that would have held every payload so far, header included; 0 where the one in use did."""
    is_recording: bool = False
    """Set it to fill `per_tag`; it costs some microseconds per operation, and without it nothing is timed."""
    per_tag: list[TagStats] = field(default_factory=list)
    """In the order in which they were first used."""
    _by_name: dict[tuple[str, str], TagStats] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The same, to be found at once however many tags there are."""

    def of(self, operation: str, tag: str) -> TagStats:
        """The entry of that operation and tag; a new one where there is none."""
        entry = self._by_name.get((operation, tag))
        if entry is None:
            entry = self._by_name[operation, tag] = TagStats(operation, tag)
            self.per_tag.append(entry)
        return entry

    def to_json(self) -> str:
        """Returns all of it as JSON text."""
        return json.dumps(_as_dict(self))

    def __str__(self) -> str:
        return GroupStats((self,)).table()


@dataclass(frozen=True)
class GroupStats:
    """The stats of all ranks, from which it shows who keeps the others waiting."""

    ranks: Sequence[Stats]
    """In rank order."""

    @classmethod
    def from_json(cls, texts: Sequence[bytes]) -> "GroupStats":
        """Takes what `Stats.to_json` has written on every rank."""
        return cls(tuple(_from_dict(json.loads(text)) for text in texts))

    def rows(self) -> list[dict[str, Any]]:
        """One dict per operation and tag: sums over the ranks, and means of times, in seconds per operation.

        Who comes last to an exchange does not wait, so the rank with the shortest exchanges is the `slowest_rank`, and
        what it spends there is the transfer. `wait_s` is what the others spend beyond that, on average, and
        `longest_wait_s` what the one that waits most does.
        """
        entries: dict[tuple[str, str], dict[int, TagStats]] = {}
        for rank, stats in enumerate(self.ranks):
            for entry in stats.per_tag:
                entries.setdefault((entry.operation, entry.tag), {})[rank] = entry
        return [_row(operation, tag, of_rank) for (operation, tag), of_rank in entries.items()]

    def to_json(self) -> str:
        """Returns rows, and the stats of each rank, as JSON text."""
        return json.dumps({"rows": self.rows(), "ranks": [_as_dict(stats) for stats in self.ranks]})

    def table(self) -> str:
        """Returns the rows as text, aligned; times in milliseconds per operation."""
        lines = [_TITLES, *(_line(row, alone=len(self.ranks) == 1) for row in self.rows())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            "  ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        )
        return "\n".join(line.rstrip() for line in aligned)

    def __str__(self) -> str:
        return self.table()


_TITLES = (
    *("operation", "count", "bytes", "padding", "2nd rounds"),
    *("encode ms", "wait ms", "transfer ms", "decode ms", "slowest"),
)


def _row(operation: str, tag: str, entry_of: Mapping[int, TagStats]) -> dict[str, Any]:
    entries = {rank: entry for rank, entry in entry_of.items() if entry.operations}
    count = max((entry.operations for entry in entries.values()), default=0)
    exchange_s = {rank: entry.round_1_s / entry.operations for rank, entry in entries.items()}
    slowest = min(exchange_s, key=exchange_s.__getitem__, default=0)
    waits = {rank: seconds - exchange_s[slowest] for rank, seconds in exchange_s.items()}

    def mean(name: str) -> float:
        each = [getattr(entry, name) / entry.operations for entry in entries.values()]
        return sum(each) / len(each) if each else 0.0

    return {
        "operation": operation,
        "tag": tag,
        "operations": count,
        "nbytes": sum(entry.nbytes for entry in entries.values()),
        "padding_nbytes": sum(entry.padding_nbytes for entry in entries.values()),
        "second_rounds": max((entry.second_rounds for entry in entries.values()), default=0),
        "encode_s": mean("encode_s"),
        "wait_s": sum(waits.values()) / max(len(waits) - 1, 1),
        "longest_wait_s": max(waits.values(), default=0.0),
        "transfer_s": exchange_s.get(slowest, 0.0) + mean("round_2_s"),
        "decode_s": mean("decode_s"),
        "slowest_rank": slowest,
    }


def _line(row: dict[str, Any], *, alone: bool) -> tuple[str, ...]:
    name = row["operation"] + (f" {row['tag']!r}" if row["tag"] else "")
    counts = (str(row[key]) for key in ("operations", "nbytes", "padding_nbytes", "second_rounds"))
    times = [f"{1e3 * row[key]:.3f}" for key in ("encode_s", "wait_s", "transfer_s", "decode_s")]
    if alone:  # what one rank knows is not who is slow
        return (name, *counts, times[0], "", *times[2:], "")
    return (name, *counts, *times, format_ranks([row["slowest_rank"]]))


def _as_dict(stats: Stats) -> dict[str, Any]:
    fields = {key: getattr(stats, key) for key in Stats.__dataclass_fields__ if key[0] != "_"}
    return fields | {"per_tag": [asdict(entry) for entry in stats.per_tag]}


def _from_dict(fields: dict[str, Any]) -> Stats:
    per_tag = [TagStats(**entry) for entry in fields.pop("per_tag")]
    return Stats(**fields, per_tag=per_tag)
