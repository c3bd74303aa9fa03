"""Filling this rank's slot in place: with its object's frames, or with what went wrong."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from gather_core.codec import Frames
from gather_core.errors import SUMMARY_NBYTES, LimitError, shorten, summarize
from gather_core.memory import align
from gather_core.slot import (
    HEADER_NBYTES,
    Failure,
    Kind,
    checksum_parts,
    pack_agreement,
    payload_nbytes,
    payload_parts,
    write_header,
    write_payload,
)
from gather_core.small_slots import longest_small_frame, pack_small_slot
from gather_core.transport import Transport
from gather_core.verdict import Terms

_DATA = int(Kind.DATA)
_FRAME = "  File "
"""How the frames of a formatted traceback begin."""


@dataclass(slots=True)
class Outgoing:
    """What this rank brings to round 1."""

    frames: Frames
    nbytes: int
    """Of the payload."""
    filled: int
    """Of the slot, in bytes."""
    agreement: bytes
    failure: BaseException | None = None
    parcels: Sequence[Frames] = ()
    """For each rank, what travels to it by itself after round 1."""


class SlotWriter:
    """Writes into the slot that the transport lends."""

    def __init__(self, transport: Transport, rank: int, terms: Terms) -> None:
        self._transport = transport
        self._rank = rank
        self._terms = terms
        self._inline_up_to = terms.slot_nbytes if terms.overflow_is_error else terms.round_1_nbytes
        self._small_up_to = longest_small_frame(terms)

    def write(self, frames: Frames, seq: int, op: int) -> Outgoing:
        """Writes an object's frames, or only their header and checksum where they do not fit.

        Raises:
            LimitError: They are larger than the limits allow.
        """
        terms = self._terms
        agreement = pack_agreement(_DATA, terms.group_id, seq, terms.world_size, op)
        if len(frames) == 1 and len(frames[0]) <= self._small_up_to:
            packed = pack_small_slot(frames[0], self._rank, agreement)
            filled = len(packed)
            self._transport.slot(filled)[:filled] = packed
            return Outgoing(frames, filled - HEADER_NBYTES, filled, agreement)
        nbytes = payload_nbytes(frames)
        if nbytes > terms.limits.payload_nbytes:
            raise LimitError(f"{nbytes} bytes are above Limits.payload_nbytes={terms.limits.payload_nbytes}")
        filled = HEADER_NBYTES + nbytes
        covers_frames = nbytes < terms.covered_below_nbytes
        if filled <= self._inline_up_to:
            slot = self._transport.slot(filled)
            payload = slot[HEADER_NBYTES:filled]
            write_payload(payload, frames)
            checked = [payload if covers_frames else payload[: align(8 * len(frames))]]
        else:
            filled = HEADER_NBYTES
            slot = self._transport.slot(filled)
            parts = payload_parts(frames)
            checked = parts if covers_frames else parts[:1]
        write_header(slot, nbytes, self._rank, len(frames), checksum_parts(checked), agreement)
        return Outgoing(frames, nbytes, filled, agreement)

    def write_failure(self, failure: Exception, phase: str, seq: int) -> Outgoing:
        """Writes an ERROR slot: `failure` as text, as much of it as the slot holds."""
        terms = self._terms
        room = terms.slot_nbytes - HEADER_NBYTES
        summary = summarize(failure, min(room // 4, SUMMARY_NBYTES))
        frames = Failure(phase, summary, _format_traceback(failure, room // 16)).frames(room)
        nbytes = payload_nbytes(frames)
        filled = HEADER_NBYTES + nbytes
        slot = self._transport.slot(filled)
        payload = slot[HEADER_NBYTES:filled]
        write_payload(payload, frames)
        agreement = pack_agreement(Kind.ERROR, terms.group_id, seq, terms.world_size, 0)
        write_header(slot, nbytes, self._rank, len(frames), checksum_parts([payload]), agreement)
        return Outgoing((), nbytes, filled, agreement, failure)


def _format_traceback(exc: BaseException, message_nbytes: int) -> str:
    """The traceback with whole frames and short messages: a long one would leave no room for the frames."""
    try:
        parts = traceback.format_exception(exc)
    except Exception as broken:
        return f"(no traceback: {type(broken).__name__})"
    return "".join(part if part.startswith(_FRAME) else shorten(part, message_nbytes) for part in parts)
