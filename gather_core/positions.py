"""Where ranks are in the sequence of operations, and what an error says of those that are late."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gather_core.errors import TransportTimeoutError, format_ranks, shorten

Position = tuple[int, str, str, str]
"""Operation number, operation, tag, phase: one of `PHASES`."""
PHASES = ("function", "encode", "round 1", "round 2", "decode", "closed within", "done", "closed")
"""In the order in which a rank goes through them. "function" is before the operation, in the function given to `run`;
"done" is after it, "closed" where the Gatherer was closed since, "closed within" where that ended the operation."""
_DOING = {"encode": "encoding", "decode": "decoding"}
_TAG_NBYTES = 256
"""Longest tag in a message."""


@dataclass
class Answers:
    """Where the ranks say that they are."""

    positions: dict[int, Position] = field(default_factory=dict)
    cut_short: str = "the job's store does not answer"
    """Why not all ranks had time to answer; empty once they had, so that those who did not are silent."""


@dataclass(frozen=True)
class Report:
    """What the positions say about a failed operation."""

    text: str
    silent: list[int]
    """Ranks that did not answer though they could have; where nobody could, those that the transport missed."""
    behind: list[int]
    """Ranks that are alive and late: at an earlier operation, another one, or an earlier phase of this one."""


def explain(cause: Exception, own: Position, answers: Answers, world_size: int) -> Report:
    """Says who is missing and where the others are, from the view of a rank at `own` that failed with `cause`."""
    positions = answers.positions
    late = cause.missing if isinstance(cause, TransportTimeoutError) else ()
    unheard = [rank for rank in range(world_size) if rank not in positions]
    silent = [rank for rank in unheard if rank in late] if answers.cut_short else unheard
    behind = [
        rank
        for rank, at in sorted(positions.items())
        if _is_behind(at, own) or (rank in late and not _is_ahead(at, own))
    ]
    lines = [f"{_name(own)}{', round 2' if own[3] == 'round 2' else ''}: {cause}"]
    if unheard and answers.cut_short:
        lines.append(f"where {format_ranks(unheard)} may be is not known, as {answers.cut_short}")
    elif unheard:
        lines.append(f"no sign of life from {format_ranks(unheard)}")
    others = {
        rank: at
        for rank, at in positions.items()
        if rank in behind or _is_ahead(at, own) or (_entered(at, own) and at[3] == "closed within")
    }
    lines += [_line(ranks, at, own) for at, ranks in _by_position(others).items()]
    return Report("; ".join(lines + _advice(own, list(others.values()))), silent, behind)


def as_told(position: Position) -> Position:
    """The position with a tag that fits into a message; none where the caller gave something else than a str."""
    seq, operation, tag, phase = position
    return seq, operation, shorten(tag, _TAG_NBYTES) if type(tag) is str else "", phase


def _phase(position: Position) -> int:
    return PHASES.index(position[3])


def _entered(position: Position, own: Position) -> bool:
    """Whether a rank there is, or was, in the operation of `own`."""
    return position[:3] == own[:3] and position[3] != "function"


def _is_ahead(position: Position, own: Position) -> bool:
    return position[0] > own[0] or (position[0] == own[0] and position[3] in ("done", "closed"))


def _is_behind(position: Position, own: Position) -> bool:
    return not _is_ahead(position, own) and (not _entered(position, own) or _phase(position) < _phase(own))


def _by_position(positions: Mapping[int, Position]) -> dict[Position, list[int]]:
    """Groups the ranks, so that a message does not grow with those that are all at one place."""
    ranks: dict[Position, list[int]] = {}
    for rank, position in sorted(positions.items()):
        ranks.setdefault(position, []).append(rank)
    return ranks


def _line(ranks: Sequence[int], position: Position, own: Position) -> str:
    who, is_one = format_ranks(ranks), len(ranks) == 1
    be = "is" if is_one else "are"
    if _is_ahead(position, own):
        return f"{who} {be} ahead ({_whereabouts(position, own, is_one=is_one)})"
    if not _entered(position, own):
        return f"{who} never entered {_name(own)} ({_whereabouts(position, own, is_one=is_one)})"
    if position[3] == "closed within":
        return f"{who} closed {'its' if is_one else 'their'} Gatherer in the middle of it"
    if _is_behind(position, own):
        return f"{who} {be} still {_doing(position)}"
    return f"{who} {be} in it too, but late"


def _name(position: Position) -> str:
    seq, operation, tag, _ = position
    return f"{operation} #{seq}" + (f" {tag!r}" if tag else "")


def _short_name(position: Position, own: Position) -> str:
    """Without the operation, where that is the same as this rank's."""
    return _name(position).removeprefix(f"{own[1]} ")


def _doing(position: Position) -> str:
    return _DOING.get(position[3], f"in {position[3]}")


def _whereabouts(position: Position, own: Position, *, is_one: bool) -> str:
    """Where ranks are, in words that follow on naming them and the operation of `own`."""
    they, are, have, their = ("it", "is", "has", "its") if is_one else ("they", "are", "have", "their")
    name = _short_name(position, own)
    match position[3]:
        case "done" | "closed" if position[0] == 0:
            return f"{they} {have} called nothing" + (
                " yet" if position[3] == "done" else f" and closed {their} Gatherer"
            )
        case "closed":
            return f"{they} closed {their} Gatherer after {name}"
        case "closed within":
            return f"{they} closed {their} Gatherer in the middle of {name}"
        case "done":
            return f"{they} {are} {'done with' if position[0] == own[0] else 'at'} {name}"
        case "function":
            return f"{they} {are} still running the function given to {'it' if position[:3] == own[:3] else name}"
        case phase:
            return f"{they} {are} {'still ' if position[0] < own[0] else ''}in {name}, {_DOING.get(phase, phase)}"


def _advice(own: Position, elsewhere: Sequence[Position]) -> list[str]:
    """What to do where the positions show what went wrong."""
    if any(position[3] == "function" and position[:3] == own[:3] for position in elsewhere):
        return ["if the function may take that long, use a larger timeout_s"]
    if any(position[3] == "closed" for position in elsewhere):
        return ["all ranks must make the same number of calls: do some have fewer batches?"]
    return []
