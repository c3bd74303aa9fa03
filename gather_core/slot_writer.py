"""Filling this rank's slot in place: with its object's frames, or with what went wrong."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from gather_core.codec import Frames
from gather_core.codec_border import has_given
from gather_core.errors import SUMMARY_NBYTES, LimitError, shorten, summarize
from gather_core.memory import align
from gather_core.slot import (
    HEADER_NBYTES,
    SEALED,
    Failure,
    Kind,
    agreement_packer,
    checksum_parts,
    pack_header,
    payload_nbytes,
    payload_parts,
    write_payload,
)
from gather_core.transport import Transport
from gather_core.verdict import Terms

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
    seal: bytes = b""
    """The end of a payload that is left to round 2."""
    parcels: Sequence[Sequence[memoryview]] = ()
    """For each rank, the parts of what travels to it by itself after round 1."""


class SlotWriter:
    """Writes into the slot that the transport lends."""

    def __init__(self, transport: Transport, rank: int, terms: Terms) -> None:
        self._transport = transport
        self._rank = rank
        self._terms = terms
        self._inline_up_to = terms.slot_nbytes if terms.overflow_is_error else terms.round_1_nbytes
        self._seal_nbytes = terms.seal_nbytes
        flags = SEALED if terms.seal is not None else 0
        self.agreement = agreement_packer(Kind.DATA, terms.group_id, flags)
        """Packs, of the number of an operation, the world size and the operation, what a healthy slot says of it."""
        self._failed_agreement = agreement_packer(Kind.ERROR, terms.group_id, flags)

    def fits(self, frames: Frames) -> bool:
        """Whether round 1 carries these frames, and the limits allow it."""
        nbytes = payload_nbytes(frames) + self._seal_nbytes
        limits = self._terms.limits
        is_short = HEADER_NBYTES + nbytes <= self._inline_up_to and nbytes <= limits.payload_nbytes
        return is_short and len(frames) <= limits.num_frames

    def write(self, frames: Frames, agreement: bytes) -> Outgoing:
        """Writes an object's frames, or only their header and checksum where they do not fit.

        Raises:
            LimitError: They are larger than the limits allow.
        """
        terms = self._terms
        nbytes = payload_nbytes(frames) + self._seal_nbytes
        if nbytes > terms.limits.payload_nbytes:
            raise LimitError(f"{nbytes} bytes are above Limits.payload_nbytes={terms.limits.payload_nbytes}")
        self._transport.may_give = terms.seal is None and has_given(frames, nbytes)
        is_inline = HEADER_NBYTES + nbytes <= self._inline_up_to
        filled = HEADER_NBYTES + (nbytes if is_inline else 0)
        slot = self._transport.slot(filled)
        payload = slot[HEADER_NBYTES : filled - self._seal_nbytes]
        if is_inline:
            write_payload(payload, frames)
            if terms.seal is None:
                checked = payload if nbytes < terms.covered_below_nbytes else payload[: align(8 * len(frames))]
                checksum = xxh3_64_intdigest(checked)
                slot[:HEADER_NBYTES] = pack_header(nbytes, self._rank, len(frames), checksum, agreement)
                return Outgoing(frames, nbytes, filled, agreement)
        # a seal is made over this rank's own bytes: peers may share the slot's memory
        parts = payload_parts(frames)
        checked_parts = parts if nbytes < terms.covered_below_nbytes else parts[:1]
        seal = self._write_header(slot, nbytes, frames, parts, checked_parts, agreement)
        if is_inline:
            slot[filled - len(seal) : filled] = seal
            seal = b""
        return Outgoing(frames, nbytes, filled, agreement, seal=seal)

    def write_failure(self, failure: Exception, phase: str, seq: int) -> Outgoing:
        """Writes an ERROR slot: `failure` as text, as much of it as the slot holds."""
        terms = self._terms
        room = terms.slot_nbytes - HEADER_NBYTES - self._seal_nbytes
        summary = summarize(failure, min(room // 4, SUMMARY_NBYTES))
        frames = Failure(phase, summary, _format_traceback(failure, room // 16)).frames(room)
        nbytes = payload_nbytes(frames) + self._seal_nbytes
        filled = HEADER_NBYTES + nbytes
        slot = self._transport.slot(filled)
        write_payload(slot[HEADER_NBYTES : filled - self._seal_nbytes], frames)
        parts = payload_parts(frames)
        agreement = self._failed_agreement(seq, terms.world_size, 0)
        seal = self._write_header(slot, nbytes, frames, parts, parts, agreement)
        slot[filled - len(seal) : filled] = seal
        return Outgoing((), nbytes, filled, agreement, failure)

    def _write_header(
        self,
        slot: memoryview,
        nbytes: int,
        frames: Frames,
        parts: Sequence[memoryview],
        checked: Sequence[memoryview],
        agreement: bytes,
    ) -> bytes:
        """Writes the header; returns the seal of the payload that has these parts, empty where there are none."""
        header = pack_header(nbytes, self._rank, len(frames), checksum_parts(checked), agreement)
        slot[:HEADER_NBYTES] = header
        seal = self._terms.seal
        return b"" if seal is None else seal.block(header, parts)


def _format_traceback(exc: BaseException, message_nbytes: int) -> str:
    """The traceback with whole frames and short messages: a long one would leave no room for the frames."""
    try:
        parts = traceback.format_exception(exc)
    except Exception as broken:
        return f"(no traceback: {type(broken).__name__})"
    return "".join(part if part.startswith(_FRAME) else shorten(part, message_nbytes) for part in parts)
