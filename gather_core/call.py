"""One operation as its caller asked for it: arguments, their check, and the code by which ranks compare them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from operator import index
from typing import Any, Literal

from xxhash import xxh3_64_intdigest

from gather_core.errors import SettingsError

Timeout = float | timedelta | None
Form = Literal["object", "parcels", "frames"]
"""What a rank hands in and gets: one object; one object per rank; frames, which the codec does not see."""

Received = list[tuple[int, Sequence[memoryview]]]
"""Ranks and the frames of what they sent: borrowed and read-only, or writable and for the object to keep."""

_ROOT_ARGUMENT = {"gather": "dst", "broadcast": "src", "scatter": "src", "iter_gather": "dst"}
"""How the operations that have a root call it."""


@dataclass(frozen=True, slots=True)
class Manner:
    """In what an operation differs from the plain one, in which every rank gets objects and decodes them."""

    routed: bool = False
    """In round 2, only the root receives."""
    form: Form = "object"
    lazy: bool = False
    """Objects are decoded when they are looked at."""
    confirm: bool = False
    """All ranks learn whether all could decode."""
    checked: Callable[[Any], Any] | None = None
    """What this rank hands in goes through it first; what it raises reaches every rank."""
    taken: Callable[[Received], Any] | None = None
    """Makes the result, of the ranks and frames that have come, in place of decoding them."""
    admit: Callable[[Sequence[int]], Sequence[int]] | None = None
    """Says which of the payloads that are left to round 2, in bytes per rank, go now; the same on every rank."""


PLAIN = Manner()
ROUTED = Manner(routed=True)


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
    manner: Manner = PLAIN
    op: int = 0
    """What `check` returns, where that is known before; else 0."""

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
        return op_code(self.operation, self.root, self.tag, "confirmed" if self.manner.confirm else "")


@lru_cache(maxsize=4096)
def op_code(operation: str, root: int | None, tag: str, what: str = "") -> int:
    """32 bits that tell an operation apart, and what is agreed of it besides."""
    text = f"{operation}\0{root}\0{tag}" + (f"\0{what}" if what else "")
    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) & 0xFFFFFFFF


def as_int(rank: Any) -> Any:
    """A rank that is a whole number of another type, such as numpy's, as an int; what is none is left as it is."""
    try:
        return rank if isinstance(rank, bool) else index(rank)
    except TypeError:
        return rank
