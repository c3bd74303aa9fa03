"""Slots written and read by the steps of slot.py and verdict.py, to compare with what does both in one go."""

from collections.abc import Sequence

from gather_core.errors import GatherError
from gather_core.memory import UNBOUNDED, align
from gather_core.slot import HEADER_NBYTES, checksum_parts, pack_header, payload_nbytes, read_frames, write_payload
from gather_core.verdict import Terms, judge


def write_slot(
    frames: Sequence[bytes], rank: int, agreement: bytes, covered_below_nbytes: int = UNBOUNDED
) -> memoryview:
    """The slot of a healthy rank, and no byte more."""
    nbytes = payload_nbytes(frames)
    slot = memoryview(bytearray(HEADER_NBYTES + nbytes))
    write_payload(slot[HEADER_NBYTES:], frames)
    end = HEADER_NBYTES + (nbytes if nbytes < covered_below_nbytes else align(8 * len(frames)))
    slot[:HEADER_NBYTES] = pack_header(nbytes, rank, len(frames), checksum_parts([slot[HEADER_NBYTES:end]]), agreement)
    return slot.toreadonly()


def read_slots(slots: Sequence[memoryview], agreement: bytes, terms: Terms) -> list[list[bytes]]:
    """The frames of each rank; raises GatherError where something is wrong, or left to round 2."""
    found = []
    for slot, header in zip(slots, judge(slots, agreement, terms).headers, strict=True):
        payload = slot[HEADER_NBYTES : HEADER_NBYTES + header.total_nbytes]
        if len(payload) < header.total_nbytes:
            raise GatherError("left to round 2")
        is_covered = header.total_nbytes < terms.covered_below_nbytes
        found.append(list(map(bytes, read_frames(payload, header, terms.limits, frames_checked=is_covered))))
    return found
