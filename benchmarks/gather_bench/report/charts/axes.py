"""Logarithmic axes: where a value is drawn, and where the ticks are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ROOM = 1.15
"""So many times the largest value, and the smallest, fit on an axis."""
_MAX_TICKS = 8
_MIN_DISTANCE = 24
"""Pixels."""


@dataclass(frozen=True)
class LogAxis:
    """Positive values from `low` to `high` on a line from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float) -> "LogAxis":
        """An axis on which all the values find room; there is at least one, and all are above 0."""
        known = sorted(values)
        return cls(known[0] / _ROOM, known[-1] * _ROOM, start, end)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def decimal_ticks(self) -> Sequence[float]:
        """Powers of 10, with 2 and 5 times them where there is room."""
        return self._ticks(10, (1, 2, 5))

    def binary_ticks(self) -> Sequence[float]:
        """Powers of 2, of 4, and so on: as many as there is room for."""
        return self._ticks(2, (1,))

    def with_room_between(self, wanted: Iterable[float]) -> Sequence[float]:
        """Of the ticks wanted, from the lowest on, those that do not crowd the one before."""
        ticks: list[float] = []
        for value in sorted(wanted):
            if not ticks or abs(self.at(value) - self.at(ticks[-1])) >= _MIN_DISTANCE:
                ticks.append(value)
        return ticks

    def _ticks(self, base: int, steps: Sequence[int]) -> Sequence[float]:
        first, last = (math.log(value, base) for value in (self.low, self.high))
        exponents = range(math.floor(first), math.ceil(last) + 1)
        fine = self._inside(step * float(base) ** exponent for exponent in exponents for step in steps)
        if len(fine) <= _MAX_TICKS:
            return fine
        stride = math.ceil((last - first) / _MAX_TICKS)
        return self._inside(float(base) ** exponent for exponent in exponents if exponent % stride == 0)

    def _inside(self, values: Iterable[float]) -> Sequence[float]:
        return [value for value in values if self.low <= value <= self.high]
