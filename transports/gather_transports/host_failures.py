"""Failures of the transports that `hierarchical` joins, in the words of the group: they number ranks otherwise."""

import re
from collections.abc import Sequence

from gather_core.errors import AbortedError, PeerLostError, TransportError, TransportTimeoutError, format_ranks

_RANKS = re.compile(r"\branks? (\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)")
"""As `format_ranks` writes them."""


def in_group_ranks(exc: TransportError, ranks: Sequence[int], where: str) -> TransportError:
    """Returns the failure with group ranks, in fields and text.

    Args:
        exc: What a transport has raised.
        ranks: The group rank of each rank of that transport.
        where: Which transport it was, for the text.
    """
    if isinstance(exc, AbortedError):
        return AbortedError(_aborted_text(str(exc), ranks[exc.rank]), ranks[exc.rank])
    text = f"{where}: {renumbered(str(exc), ranks)}"
    if isinstance(exc, TransportTimeoutError):
        return TransportTimeoutError(text, [ranks[rank] for rank in exc.missing], [ranks[rank] for rank in exc.behind])
    if isinstance(exc, PeerLostError):
        return PeerLostError(text, [ranks[rank] for rank in exc.ranks])
    return TransportError(text)


def _aborted_text(text: str, rank: int) -> str:
    """The reason may come from anywhere, and is left as it is."""
    said, colon, reason = text.partition(": ")
    return f"rank {rank} aborted: {reason if colon and said.endswith('aborted') else text}"


def renumbered(text: str, ranks: Sequence[int]) -> str:
    """Replaces the ranks that a text names by the group's; what is no rank there is left as it is."""
    return _RANKS.sub(lambda found: _renumbered(found, ranks), text)


def _renumbered(found: "re.Match[str]", ranks: Sequence[int]) -> str:
    named: list[int] = []
    for run in found[1].split(", "):
        first, _, last = run.partition("-")
        named += range(int(first), int(last or first) + 1)
    if not all(rank < len(ranks) for rank in named):
        return found[0]
    return format_ranks([ranks[rank] for rank in named])
