"""Ways to gather one payload, made ready: what is called while the clock runs, and how to read what it returns."""

from abc import ABC, abstractmethod
from typing import Any

from gather_bench.looking import looked_at
from gather_core import DecodeOptions, Gatherer
from gather_core.codec_border import CodecBorder
from gather_core.slot import HEADER_NBYTES, payload_nbytes


class ReadyWay(ABC):
    """(all ranks) Gathers the object of which it was made, again and again."""

    encoded_nbytes: int
    """What this rank hands to the transport or collective per call."""
    fitting_slot_nbytes: int | None = None
    """The least slot in which this rank's payload fits; None for what has no slots."""

    @abstractmethod
    def __call__(self) -> Any:
        """(all ranks) Gathers once; this is what is timed."""

    def objects(self, returned: Any) -> list[Any]:
        """Reads the objects of all ranks, in rank order, from what a call returned; default: it is they."""
        objects: list[Any] = returned
        return objects

    def gather_rounds(self) -> int | None:
        """Rounds of the Gatherer that a call has needed, 1 or 2; None for what is none."""
        return None


class GathererWay(ReadyWay):
    """`Gatherer.all_gather`.

    Raises:
        EncodeError: The codec refuses the object.
        LimitError: It is above the limits.
    """

    def __init__(self, gatherer: Gatherer, obj: Any) -> None:
        frames = CodecBorder(gatherer.codec, DecodeOptions()).encode(obj)
        self.encoded_nbytes = sum(map(len, frames))
        self.fitting_slot_nbytes = HEADER_NBYTES + payload_nbytes(frames)
        self.gatherer = gatherer
        self._obj = obj
        self._second_rounds_before = gatherer.stats.second_rounds

    def __call__(self) -> Any:
        """Encodes, gathers, decodes, and looks at what has come."""
        return looked_at(self.gatherer.all_gather(self._obj))

    def gather_rounds(self) -> int:
        """2 where any rank's payload went in a second round."""
        return 1 + (self.gatherer.stats.second_rounds > self._second_rounds_before)
