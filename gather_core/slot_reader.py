"""Reading the slots of a round in one go, as long as nothing is wrong with any of them.

Most objects cost more in calls than in work, so what `verdict.py` and `slot.py` do step by step is done here at once.
Nothing here decides anything: slots that are not exactly as they should be are left to `judge`, which says why.
"""

from collections.abc import Container, Sequence

from xxhash import xxh3_64_intdigest

from gather_core.call import Received
from gather_core.codec_border import MOST_HELD_OF_SLOTS, give_large
from gather_core.memory import ALIGNMENT
from gather_core.slot import HEADER, HEADER_NBYTES, PREFIX, frame_table, is_data
from gather_core.verdict import Terms


class SlotReader:
    """Reads healthy slots that round 1 has carried whole, and that have no seal."""

    __slots__ = ("_bounds", "_has_seals")

    def __init__(self, terms: Terms) -> None:
        limits = terms.limits
        carried_nbytes = terms.slot_nbytes if terms.overflow_is_error else terms.round_1_nbytes
        payload_nbytes = min(carried_nbytes - HEADER_NBYTES, limits.payload_nbytes)
        self._bounds = payload_nbytes, limits.num_frames, limits.frame_nbytes, terms.covered_below_nbytes
        self._has_seals = terms.seal is not None

    def read(
        self, slots: Sequence[memoryview], agreement: bytes, wanted: Container[int]
    ) -> tuple[Received, int] | None:
        """Verifies all headers, and the payloads of some ranks: checksums, lengths and limits.

        Args:
            slots: One view per group rank, in order.
            agreement: The agreement block that this rank has written.
            wanted: The ranks whose frames are to be read.

        Returns:
            The frames of those ranks, and how long the longest payload is, in bytes; None where any slot is not so.
        """
        if self._has_seals or not is_data(agreement):  # where every rank failed alike, no slot differs from ours
            return None
        most_nbytes, most_frames, most_frame_nbytes, covered_below_nbytes = self._bounds
        received: Received = []
        longest = 0
        for rank, slot in enumerate(slots):
            header = slot[:HEADER_NBYTES].tobytes()  # a peer may share the slot's memory
            if len(header) < HEADER_NBYTES:
                return None
            total, checksum, of_rank, num_frames, payload_checksum, found = HEADER.unpack(header)
            if (
                found != agreement
                or of_rank != rank
                or checksum != xxh3_64_intdigest(header[PREFIX.size :], total)
                or total > most_nbytes
                or total % ALIGNMENT
                or num_frames > most_frames
                or total < (8 * num_frames + ALIGNMENT - 1) & -ALIGNMENT
                or HEADER_NBYTES + total > len(slot)
            ):
                return None
            if total > longest:
                longest = total
            if rank not in wanted:
                continue
            table = frame_table(num_frames)
            start, end = HEADER_NBYTES + table.size, HEADER_NBYTES + total
            checked = slot[HEADER_NBYTES : end if total < covered_below_nbytes else start]
            if xxh3_64_intdigest(checked) != payload_checksum:
                return None
            frames = []
            for length in table.unpack_from(slot, HEADER_NBYTES):
                if length > most_frame_nbytes:
                    return None
                frames.append(slot[start : start + length])
                start = (start + length + ALIGNMENT - 1) & -ALIGNMENT
            if start != end:
                return None
            received.append((rank, frames if slot.readonly else give_large(frames, MOST_HELD_OF_SLOTS)))
        return received, longest
