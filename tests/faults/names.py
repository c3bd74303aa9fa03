"""Which ranks an error names: by its attributes and in its text."""

import re

from gather_core import (
    AbortedError,
    PeerLostError,
    RankFailedError,
    SlotOverflowError,
    TransportTimeoutError,
)

_RANKS = re.compile(r"\branks? (\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)")


def named_ranks(exc: BaseException) -> tuple[int, ...]:
    """Returns them in order."""
    return tuple(sorted({*_attributes(exc), *_in_text(str(exc))}))


def _attributes(exc: BaseException) -> tuple[int, ...]:
    if isinstance(exc, RankFailedError):
        return tuple(exc.failures)
    if isinstance(exc, SlotOverflowError):
        return tuple(exc.nbytes)
    if isinstance(exc, TransportTimeoutError):
        return exc.missing + exc.behind
    if isinstance(exc, PeerLostError):
        return exc.ranks
    return (exc.rank,) if isinstance(exc, AbortedError) else ()


def _in_text(text: str) -> set[int]:
    found: set[int] = set()
    for match in _RANKS.finditer(text):
        for part in match[1].split(", "):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found
