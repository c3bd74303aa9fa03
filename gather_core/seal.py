"""Seals: keyed BLAKE2b over a slot's header and payload, so that only who has the key can write what ranks believe.

A sealed payload ends with 64 bytes more: the 32-byte MAC, and zeros. The header counts them and says in its flags that
they are there. A header names group, run, operation and rank, so that what was recorded elsewhere fits nowhere else.
BLAKE2b with a key is a MAC by itself (RFC 7693, section 2.9).
"""

import hmac
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from gather_core.errors import ProtocolError
from gather_core.slot import HEADER_NBYTES

SEAL_NBYTES = 64
_MAC_NBYTES = 32
_PERSON = b"gather-core 1"
MIN_KEY_NBYTES = 16


class Seal:
    """Makes and checks seals. Its key is in no representation of it, and never pickled."""

    __slots__ = ("_blank",)

    def __init__(self, key: bytes) -> None:
        if len(key) > blake2b.MAX_KEY_SIZE:
            key = blake2b(key).digest()
        self._blank = blake2b(key=key, digest_size=_MAC_NBYTES, person=_PERSON)

    def __reduce__(self) -> str:
        raise TypeError("a seal holds a key, which does not travel")

    def block(self, header: bytes, parts: Iterable[memoryview], context: bytes = b"") -> bytes:
        """Returns the end of the payload that has these parts before it."""
        return self._mac(header, parts, context) + bytes(SEAL_NBYTES - _MAC_NBYTES)

    def open(self, header: bytes, payload: memoryview, context: bytes = b"") -> memoryview:
        """Returns the payload without its seal.

        Raises:
            ProtocolError: It was not written by who has the key, or not for this place.
        """
        end = len(payload) - SEAL_NBYTES
        found = payload[max(end, 0) :].tobytes()
        if end < 0 or not hmac.compare_digest(found, self.block(header, [payload[:end]], context)):
            raise ProtocolError("the seal is wrong: another key, another place, or changed bytes")
        return payload[:end]

    def _mac(self, header: bytes, parts: Iterable[memoryview], context: bytes) -> bytes:
        mac = self._blank.copy()
        mac.update(len(context).to_bytes(8, "little") + context + header)
        for part in parts:
            mac.update(part)
        return mac.digest()


def private_copies(slots: Sequence[memoryview]) -> list[memoryview]:
    """Copies what was filled of each slot: what is checked must be what is decoded, and peers may share the memory."""
    return [memoryview(slot[: HEADER_NBYTES + _filled_nbytes(slot)].tobytes()) for slot in slots]


def _filled_nbytes(slot: memoryview) -> int:
    return min(int.from_bytes(slot[:8], "little"), max(len(slot) - HEADER_NBYTES, 0))
