"""The common case of slot.py and verdict.py in one go: healthy slots, each with one small frame.

A metrics dict costs more in calls than in work, so what those files do step by step is done here at once. Nothing here
decides anything: slots that are not exactly so are left to `judge`, and the bytes are the same (both are tested).
"""

import struct
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from gather_core.codec import Buffer
from gather_core.memory import ALIGNMENT
from gather_core.slot import CHECKED, HEADER_NBYTES, PREFIX
from gather_core.verdict import Terms

SMALL_UP_TO_NBYTES = 4096
"""Of one frame. Copying more once again begins to show."""

_TABLE = struct.Struct(f"<Q{ALIGNMENT - 8}x")
_SLOT = struct.Struct("<QQIIQ32sQ")
"""Header and the length of the only frame."""
_LENGTH = struct.Struct("<Q")
_FRAME_OFFSET = HEADER_NBYTES + _TABLE.size
_PADDING = tuple(bytes(-count % ALIGNMENT) for count in range(ALIGNMENT))


def longest_small_frame(terms: Terms) -> int:
    """How long a frame may be for its slot to be written and read here; negative where none is."""
    if terms.seal is not None:
        return -1
    limits = terms.limits
    payload_nbytes = min(terms.slot_nbytes - HEADER_NBYTES, limits.payload_nbytes, terms.covered_below_nbytes - 1)
    nbytes = min(payload_nbytes - _TABLE.size, limits.frame_nbytes, SMALL_UP_TO_NBYTES)
    return nbytes & -ALIGNMENT  # so that padding does not make it longer


def pack_small_slot(frame: Buffer, rank: int, agreement: bytes) -> bytes:
    """Returns all bytes of the slot that carries one frame."""
    payload = b"".join((_TABLE.pack(len(frame)), frame, _PADDING[len(frame) % ALIGNMENT]))
    nbytes = len(payload)
    checked = CHECKED.pack(rank, 1, xxh3_64_intdigest(payload), agreement)
    return b"".join((PREFIX.pack(nbytes, xxh3_64_intdigest(checked, nbytes)), checked, payload))


def read_small_slots(
    slots: Sequence[memoryview], agreement: bytes, max_nbytes: int, own_rank: int, own_slot: bytes
) -> list[memoryview] | None:
    """Verifies the slots of a round, checksums of all their bytes included.

    Args:
        slots: One view per group rank, in order.
        agreement: The agreement block that a healthy slot of this operation carries.
        max_nbytes: The longest frame that may be taken here.
        own_rank: This rank.
        own_slot: What `pack_small_slot` has returned here for this operation, as which this rank's own must have come
            back; empty: this rank sends something else.

    Returns:
        The frame of each rank, as views; None where a slot carries anything but one frame of that length.
    """
    if not own_slot or slots[own_rank][: len(own_slot)].tobytes() != own_slot:
        return None
    frames = []
    for rank, slot in enumerate(slots):
        if rank == own_rank:
            (length,) = _LENGTH.unpack_from(own_slot, HEADER_NBYTES)
            frames.append(memoryview(own_slot)[_FRAME_OFFSET : _FRAME_OFFSET + length])
            continue
        if len(slot) < _FRAME_OFFSET:
            return None
        head = slot[:_FRAME_OFFSET].tobytes()  # a peer may share the slot's memory
        nbytes, checksum, of_rank, num_frames, payload_checksum, found, length = _SLOT.unpack_from(head)
        end = _FRAME_OFFSET + length
        if (
            found != agreement
            or of_rank != rank
            or num_frames != 1
            or length > max_nbytes
            or nbytes != (length + 127) & -64
            or HEADER_NBYTES + nbytes > len(slot)
            or checksum != xxh3_64_intdigest(head[16:64], nbytes)
            or payload_checksum != xxh3_64_intdigest(slot[64 : 64 + nbytes])
        ):
            return None
        frames.append(slot[_FRAME_OFFSET:end])
    return frames
