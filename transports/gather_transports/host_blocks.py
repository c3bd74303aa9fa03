"""What `hierarchical` sends between hosts and publishes inside one: blocks of slots, and word of a failure.

A block of slots is a 64-byte status, a table with one u64 per slot (its length in bytes) padded to 64, and the slots,
each padded to 64. The status is zeros where all is well; else it starts with the length of a JSON text that says what
went wrong, which takes the place of table and slots.
"""

import json
import struct
from collections.abc import Sequence
from itertools import accumulate

from gather_core.errors import (
    AbortedError,
    PeerLostError,
    TransportError,
    TransportTimeoutError,
    shorten,
    summarize,
)
from gather_core.memory import align

STATUS_NBYTES = 64
_STATUS = struct.Struct("<Q")
_TEXT_NBYTES = 400
_MOST_RANKS = 32
"""Named in a status."""
LONGEST_FAILURE_NBYTES = 1024
"""Of a status with its text: as much as the smallest slot."""
LANDING_NBYTES = 16 << 20
"""What the chunks of all hosts together take in a leader's shared memory, in bytes."""
LEAST_CHUNK_NBYTES = 256 << 10


def chunk_nbytes(num_hosts: int) -> int:
    """How much of a payload leaders exchange at a time, in bytes: a multiple of 64."""
    return max(LANDING_NBYTES // num_hosts, LEAST_CHUNK_NBYTES) & -64


def block_nbytes(num_slots: int, slot_nbytes: int) -> int:
    """The most that a block of so many slots takes, in bytes."""
    return STATUS_NBYTES + align(8 * num_slots) + num_slots * align(slot_nbytes)


def longest_slot(block_nbytes: int, num_slots: int) -> int:
    """How long each of so many slots may be for their block to be no longer than that: a multiple of 64."""
    return (block_nbytes - STATUS_NBYTES - align(8 * num_slots)) // num_slots & -64


def write_block(destination: memoryview, slots: Sequence[memoryview]) -> int:
    """Writes a block of slots; returns its length in bytes."""
    sizes = [len(slot) for slot in slots]
    position = STATUS_NBYTES + align(8 * len(slots))
    destination[:STATUS_NBYTES] = bytes(STATUS_NBYTES)
    struct.pack_into(f"<{len(sizes)}Q", destination, STATUS_NBYTES, *sizes)
    for slot in slots:
        destination[position : position + len(slot)] = slot
        position += align(len(slot))
    return position


def filled_nbytes(slots: Sequence[memoryview]) -> int:
    """The length of the block of these slots, in bytes."""
    return STATUS_NBYTES + align(8 * len(slots)) + sum(align(len(slot)) for slot in slots)


def read_block(block: memoryview, num_slots: int) -> list[memoryview]:
    """Cuts a block into its slots, as views.

    Raises:
        TransportError: It carries a failure instead: the one that is meant, of that class; or it is no block.
    """
    raise_failure(block)
    sizes = struct.unpack_from(f"<{num_slots}Q", block, STATUS_NBYTES)
    starts = list(accumulate(map(align, sizes), initial=STATUS_NBYTES + align(8 * num_slots)))
    if starts[-1] > len(block) + 63:
        raise TransportError(f"a block of {len(block)} bytes claims {starts[-1]}")
    return [block[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def raise_failure(block: memoryview) -> None:
    """Raises what a block says that went wrong, if anything.

    Raises:
        TransportError: Of the class that is meant.
    """
    (nbytes,) = _STATUS.unpack_from(block)
    if nbytes:
        raise _read_failure(block[STATUS_NBYTES : STATUS_NBYTES + min(nbytes, LONGEST_FAILURE_NBYTES)])


def write_failure(destination: memoryview, failure: BaseException) -> int:
    """Writes a block that carries a failure; returns its length in bytes."""
    text = _failure_text(failure)
    destination[: STATUS_NBYTES + len(text)] = _STATUS.pack(len(text)).ljust(STATUS_NBYTES, b"\0") + text
    return STATUS_NBYTES + len(text)


def _failure_text(failure: BaseException) -> bytes:
    said: dict[str, object] = {"kind": "other", "text": summarize(failure, _TEXT_NBYTES)}
    if isinstance(failure, TransportTimeoutError):
        said |= {"kind": "timeout", "ranks": failure.missing[:_MOST_RANKS], "behind": failure.behind[:_MOST_RANKS]}
    elif isinstance(failure, PeerLostError):
        said |= {"kind": "lost", "ranks": failure.ranks[:_MOST_RANKS]}
    elif isinstance(failure, AbortedError):
        said |= {"kind": "aborted", "ranks": [failure.rank]}
    if said["kind"] != "other":
        said["text"] = shorten(str(failure), _TEXT_NBYTES)
    encoded = _as_json(said)
    if len(encoded) > LONGEST_FAILURE_NBYTES - STATUS_NBYTES:  # of characters that JSON writes as six
        encoded = _as_json(said | {"text": shorten(str(said["text"]), _TEXT_NBYTES // 6)})
    return encoded


def _as_json(said: dict[str, object]) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _read_failure(text: memoryview) -> TransportError:
    try:
        said = json.loads(bytes(text))
        message, ranks = str(said["text"]), [int(rank) for rank in said.get("ranks", ())]
        match said["kind"]:
            case "timeout":
                return TransportTimeoutError(message, ranks, [int(rank) for rank in said.get("behind", ())])
            case "lost":
                return PeerLostError(message, ranks)
            case "aborted":
                return AbortedError(message, ranks[0])
        return TransportError(message)
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        return TransportError(f"another host failed, and what it said of it cannot be read: {summarize(exc)}")
