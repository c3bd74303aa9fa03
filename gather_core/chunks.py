"""Round 2 for transports that only know round 1: payloads in slot-sized chunks, and routing through an all-gather."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from gather_core.memory import align, aligned_buffer

if TYPE_CHECKING:
    from gather_core.transport import Transport


def payload_views(block: memoryview, nbytes_per_rank: Sequence[int]) -> list[memoryview]:
    """Cuts a block into one view per payload, each start aligned to 64."""
    starts = accumulate((align(nbytes) for nbytes in nbytes_per_rank), initial=0)
    return [block[start : start + nbytes] for start, nbytes in zip(starts, nbytes_per_rank, strict=False)]


def pieces(parts: Sequence[memoryview], start: int, stop: int) -> Iterator[memoryview]:
    """Yields the views that make up bytes `start` to `stop` of the joined parts, without joining them."""
    offset = 0
    for part in parts:
        end = offset + len(part)
        if end > start and offset < stop:
            yield part[max(start - offset, 0) : stop - offset]
        offset = end
        if offset >= stop:
            return


def copy_pieces(destination: memoryview, parts: Sequence[memoryview], start: int, stop: int) -> None:
    """Copies bytes `start` to `stop` of the joined parts to the start of `destination`."""
    position = 0
    for piece in pieces(parts, start, stop):
        destination[position : position + len(piece)] = piece
        position += len(piece)


def all_gather_by_slots(
    transport: "Transport",
    parts: Sequence[memoryview],
    nbytes_per_rank: Sequence[int],
    *,
    into: Sequence[memoryview],
    timeout_s: float,
) -> Sequence[memoryview]:
    """Every rank gets every payload, a slot of each at a time; see `Transport.all_gather_exact`."""
    own_nbytes = nbytes_per_rank[transport.rank]
    chunk = transport.slot_nbytes
    for start in range(0, max(nbytes_per_rank), chunk):
        filled = max(min(own_nbytes - start, chunk), 0)
        copy_pieces(transport.slot(filled), parts, start, start + filled)
        for payload, slot in zip(into, transport.all_gather_slots(filled, timeout_s=timeout_s), strict=True):
            length = max(min(len(payload) - start, chunk), 0)
            payload[start : start + length] = slot[:length]
    return into


def all_to_all_by_all_gather(
    transport: "Transport",
    parts_per_peer: Sequence[Sequence[memoryview]],
    nbytes_matrix: Sequence[Sequence[int]],
    *,
    into: Sequence[memoryview],
    timeout_s: float,
) -> Sequence[memoryview]:
    """Every rank gets everything and keeps what is meant for it; see `Transport.all_to_all_exact`."""
    rank = transport.rank
    totals = [sum(row) for row in nbytes_matrix]
    everything = [aligned_buffer(nbytes) for nbytes in totals]
    parts = [part for parts in parts_per_peer for part in parts]
    transport.may_give = False  # only a part of it is this rank's
    sent = transport.all_gather_exact(parts, totals, into=everything, timeout_s=timeout_s)
    for payload, stream, row in zip(into, sent, nbytes_matrix, strict=True):
        start = sum(row[:rank])
        payload[:] = stream[start : start + row[rank]]
    return into
