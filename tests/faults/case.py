"""What a fault is, and what the ranks must make of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from faults.scene import VICTIM, Scene

EVERY = ("gloo", "shm", "shm+gloo", "mpi", "threads", "all_gather_object")
PROCESSES = ("gloo", "shm", "shm+gloo", "mpi", "all_gather_object")
"""Those whose ranks can be killed or stopped one by one."""
MAIN = ("gloo", "shm")

AT_ONCE_S = 4.0
"""Within how many seconds ranks hear of what they need not wait for; they take up to 1.5 s to ask each other."""

Afterwards = Literal["goes on", "broken", "none"]
"""What later calls do: succeed, raise GroupBrokenError at once, or there is no Gatherer to call."""


@dataclass(frozen=True)
class Case:
    """One fault.

    Args:
        number: In plan.toml.
        name: What happens, in a few words.
        act: What each rank does; the victim among them.
        errors: Classes of which the survivors raise one each, by name; none where all is well.
        afterwards: What becomes of the group.
        named: The ranks that each survivor's error names.
        victim: What the victim raises; None: the same as the others.
        dies: The ranks whose process ends.
        waits_s: How long survivors have to wait before they can know; what they need beyond it is `AT_ONCE_S`.
        transports: Where it makes sense.
        prepare: What each rank does before, for what lasts as long as its process.
    """

    number: int
    name: str
    act: Callable[[Scene], object]
    errors: Sequence[str] = ()
    afterwards: Afterwards = "broken"
    named: Sequence[int] = (VICTIM,)
    victim: Sequence[str] | None = None
    dies: Sequence[int] = ()
    waits_s: float = 0.0
    transports: Sequence[str] = EVERY
    prepare: Callable[[Scene], object] | None = None

    @property
    def within_s(self) -> float:
        """Seconds from the fault to the last survivor's error."""
        return self.waits_s + AT_ONCE_S

    def errors_of(self, rank: int) -> Sequence[str]:
        """What this rank may raise."""
        return self.victim if rank == VICTIM and self.victim is not None else self.errors
