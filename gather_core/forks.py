"""Which process this is, counted in forks: asking the system for its pid would take a fiftieth of a small operation."""

import os
from dataclasses import dataclass


@dataclass(slots=True)
class _Process:
    """The process that runs this."""

    num_forks: int = 0
    """Between the process that Python was started in and this one; what was made at another number is the parent's."""


this_process = _Process()


def _count() -> None:
    this_process.num_forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)
