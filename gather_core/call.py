"""One operation as its caller asked for it: arguments, their check, and the code by which ranks compare them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from operator import index
from typing import Any

from xxhash import xxh3_64_intdigest

from gather_core.errors import SettingsError

Timeout = float | timedelta | None

_ROOT_ARGUMENT = {"gather": "dst", "broadcast": "src"}
"""How the operations that have a root call it."""


@dataclass(slots=True)
class Call:
    """One operation on one rank."""

    operation: str
    root: int | None
    tag: str
    timeout_s: Timeout
    sends: bool
    """This rank hands in an object."""
    wanted: Sequence[int]
    """The ranks whose objects this rank gets."""
    routed: bool = False
    """In round 2, only the root receives."""

    def check(self, world_size: int) -> int:
        """Checks tag and root; returns 32 bits that tell operations apart in the agreement block.

        Raises:
            SettingsError: The tag is no str, or the root no group rank.
        """
        if type(self.tag) is not str:
            raise SettingsError(f"tag must be a str, not {self.tag!r}")
        name = _ROOT_ARGUMENT.get(self.operation)
        if name is not None and (type(self.root) is not int or not 0 <= self.root < world_size):
            raise SettingsError(f"{name} must be a group rank from 0 to {world_size - 1}, not {self.root!r}")
        return _op_code(self.operation, self.root, self.tag)


@lru_cache(maxsize=4096)
def _op_code(operation: str, root: int | None, tag: str) -> int:
    return xxh3_64_intdigest(f"{operation}\0{root}\0{tag}".encode("utf-8", "surrogatepass")) & 0xFFFFFFFF


def as_int(rank: Any) -> Any:
    """A rank that is a whole number of another type, such as numpy's, as an int; what is none is left as it is."""
    try:
        return rank if isinstance(rank, bool) else index(rank)
    except TypeError:
        return rank
