"""What one rank sends to each rank separately (scatter, all_to_all). Pure functions: nothing here knows a transport.

A parcel is the frames of one object. The payload of the sender's slot starts with the manifest, a frame that says of
each parcel how many frames it has, and where they are: they follow in the same payload, all parcels' in rank order, or
they travel as payloads of their own, in an exchange that moves each only to the rank that it is for.
"""

import struct
from collections.abc import Sequence
from itertools import chain

from gather_core.codec import Buffer, Frames, Limits
from gather_core.errors import LimitError, ProtocolError
from gather_core.slot import Header, check_lengths, checksum_parts, pack_header, payload_nbytes, payload_parts
from gather_core.verdict import Terms

_ENTRY = struct.Struct("<QQQ")
"""Number of frames, bytes of the payload of its own (0: the frames follow), its checksum (0 likewise)."""


def in_one_payload(parcels: Sequence[Frames]) -> list[Buffer]:
    """Returns the frames of a payload that carries all parcels."""
    manifest = b"".join(_ENTRY.pack(len(frames), 0, 0) for frames in parcels)
    return [manifest, *chain.from_iterable(parcels)]


def nbytes_in_one_payload(parcels_nbytes: int, world_size: int) -> int:
    """How many bytes parcels surely take in one payload that take so many in payloads of their own."""
    return parcels_nbytes + payload_nbytes([bytes(world_size * _ENTRY.size)])


def announced(
    parcels: Sequence[Frames], rank: int, agreement: bytes, terms: Terms
) -> tuple[list[Buffer], list[list[memoryview]]]:
    """Returns the frames of a payload that says what parcels will come from this rank, and each parcel's parts.

    Raises:
        LimitError: A parcel is larger than the limits allow.
    """
    entries, parts_per_rank = [], []
    for dst, frames in enumerate(parcels):
        nbytes = payload_nbytes(frames) + terms.seal_nbytes
        if nbytes > terms.limits.payload_nbytes:
            raise LimitError(
                f"{nbytes} bytes for rank {dst} are above Limits.payload_nbytes={terms.limits.payload_nbytes}"
            )
        parts = payload_parts(frames)
        checksum = checksum_parts(parts if nbytes < terms.covered_below_nbytes else parts[:1])
        entries.append(_ENTRY.pack(len(frames), nbytes, checksum))
        if terms.seal is not None:
            header = pack_header(nbytes, dst, len(frames), checksum, agreement)
            parts.append(memoryview(terms.seal.block(header, parts, sender(rank))))
        parts_per_rank.append(parts)
    return [b"".join(entries)], parts_per_rank


def sender(rank: int) -> bytes:
    """What a parcel's seal says besides its header, which says whom it is for."""
    return b"parcel" + rank.to_bytes(4, "little")


class Manifest:
    """What one rank has for each of the others, checked before anything is allocated for it."""

    def __init__(self, frames: Sequence[memoryview], agreement: bytes, world_size: int, limits: Limits) -> None:
        """Reads the frames of the payload that the rank sent.

        Raises:
            ProtocolError: No correct rank sends this.
            LimitError: A length is above the limits.
        """
        if not frames or len(frames[0]) != world_size * _ENTRY.size:
            raise ProtocolError("no manifest of parcels")
        self._frames = frames[1:]
        self.headers = [
            Header(nbytes, rank, num_frames, checksum, agreement)
            for rank, (num_frames, nbytes, checksum) in enumerate(_ENTRY.iter_unpack(frames[0].tobytes()))
        ]
        follow = [header for header in self.headers if not header.total_nbytes]
        if sum(header.num_frames for header in follow) != len(self._frames):
            raise ProtocolError(f"{len(self._frames)} frames are not those of the parcels in the manifest")
        for header in self.headers:
            if header.total_nbytes:
                check_lengths(header, limits)

    @property
    def nbytes_per_rank(self) -> list[int]:
        """How many bytes travel by themselves to each rank."""
        return [header.total_nbytes for header in self.headers]

    def frames_for(self, rank: int) -> Sequence[memoryview] | None:
        """The frames of that rank's parcel; None where it travels by itself."""
        if self.headers[rank].total_nbytes:
            return None
        start = sum(header.num_frames for header in self.headers[:rank] if not header.total_nbytes)
        return self._frames[start : start + self.headers[rank].num_frames]
