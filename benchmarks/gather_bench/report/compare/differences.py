"""What differs between two runs beside the code: versions, hardware, ranks, options."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gather_bench.bench.options import Options
from gather_bench.bench.results import Environment, Report

_NO_CAUSES = frozenset({"date", "gather_core"})
"""That the day and the version of what is compared differ is no surprise."""
_OF_OPTIONS = frozenset({"slot_nbytes", "calls", "launches"})
"""The others say which rows there are."""


@dataclass(frozen=True)
class Difference:
    """One fact, then and now."""

    name: str
    old: str
    new: str


def differences(old: Report, new: Report) -> Sequence[Difference]:
    """Lists what may explain a change of time."""
    causes = [field.name for field in fields(Environment) if field.name not in _NO_CAUSES]
    options = [field.name for field in fields(Options) if field.name in _OF_OPTIONS]
    return [*_between(old.environment, new.environment, causes), *_between(old.options, new.options, options)]


def _between(old: object, new: object, names: Sequence[str]) -> Iterator[Difference]:
    for name in names:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield Difference(name, _text(before), _text(after))


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
