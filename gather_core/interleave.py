"""Merging per-rank lists in the order in which a distributed sampler dealt them out."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import TypeVar

from gather_core.errors import SettingsError

T = TypeVar("T")
_GAP = object()


def interleave(parts: Sequence[Sequence[T]], total: int | None = None) -> list[T]:
    """Merges lists of ranks as `parts[0][0], parts[1][0], ..., parts[0][1], ...`; shorter ones end earlier.

    Args:
        parts: One list per rank, in rank order.
        total: Length of the data set: what a sampler has added as padding behind it is cut off. None: all.

    Raises:
        SettingsError: `total` is negative.
    """
    if total is not None and total < 0:
        raise SettingsError(f"total must be at least 0 or None, not {total!r}")
    merged = [item for item in chain.from_iterable(zip_longest(*parts, fillvalue=_GAP)) if item is not _GAP]
    return merged[:total]  # type: ignore[return-value]
