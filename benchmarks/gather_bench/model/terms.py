"""What a gather is made of, as the model has it: each term with its unit, and why it is there."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Meaning:
    """Of a term, for people."""

    title: str
    per_byte: bool
    """Printed in ns per byte; else in us."""
    reason: str


class Term(Enum):
    """One kind of work. How often it occurs is counted in `work.py`; what one costs is fitted."""

    CALL = Meaning("call", False, "encoding, headers and verdict, once per rank and call")
    OBJECT = Meaning("object", False, "every rank checks and decodes the objects of all ranks")
    ENCODED_BYTE = Meaning("byte encoded", True, "a rank writes its payload once")
    DECODED_BYTE = Meaning("byte decoded", True, "every rank copies the payloads of all ranks into its result")
    WAKE = Meaning("wake", False, "shm: a rank without a core of its own sleeps until the last peer's token wakes it")
    HOP = Meaning("hop", False, "Gloo: a rank waits for others, and is woken through the threads of both ends")
    MESSAGE = Meaning("message", False, "Gloo: what a rank's processor does to send or receive one message")
    WIRE_BYTE = Meaning("byte sent or received", True, "Gloo: copies between memory and socket, and checksums")
    STEP = Meaning("ring step", False, "all_reduce: 2 (W - 1) steps, one behind the other, whatever the size")
    NETWORK_HOP = Meaning("network hop", False, "what a message takes from host to host")
    NETWORK_BYTE = Meaning("network byte", True, "through the busiest host's link, one way")

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.value.title

    @property
    def unit(self) -> str:
        """In which its cost is told."""
        return "ns/B" if self.value.per_byte else "us"

    @property
    def scale(self) -> float:
        """Seconds of one unit."""
        return 1e-9 if self.value.per_byte else 1e-6
