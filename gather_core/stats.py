"""What a Gatherer has done so far, in numbers."""

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Counts since construction; failed operations are not in them."""

    operations: int = 0
    second_rounds: int = 0
    """Operations in which some rank's payload did not fit in its slot."""
    sent_nbytes: int = 0
    """Payload bytes of this rank, headers included, each counted once however many peers got them."""
    largest_slot_nbytes: int = 0
    """The `slot_nbytes` that would have held every payload so far, header included; 0 where the one in use did."""
