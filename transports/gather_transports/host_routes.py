"""How the payloads of round 2 go from rank to rank by way of their hosts' leaders, a chunk at a time.

What one host sends, to all hosts or to one, is a block: payloads back to back, each start aligned to 64. A chunk is the
same range of bytes of every block. Pure functions of lengths that all ranks know.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from gather_core.chunks import pieces
from gather_core.memory import align
from gather_core.transport import Transport
from gather_transports.host_map import HostMap

Outgoing = Sequence[Sequence[memoryview]]
"""Of each block that this host sends: a chunk of it, as parts in order."""

_EVERYBODY = -1
_ZEROS = memoryview(bytes(64))


class Piece(NamedTuple):
    """The part of one payload that lies in one chunk."""

    src: int
    """The group rank that sends the payload."""
    dst: int
    """The group rank that it is for, or -1: for all."""
    begin: int
    """Where the part begins in the payload, in bytes."""
    end: int
    at: int
    """Where it begins in the chunk, in bytes."""


class Block:
    """The layout of payloads back to back, each start aligned to 64.

    Args:
        payloads: Of each payload: who sends it, whom it is for, and its length in bytes.
    """

    def __init__(self, payloads: Sequence[tuple[int, int, int]]) -> None:
        self._payloads = payloads
        self._starts = list(accumulate((align(nbytes) for _, _, nbytes in payloads), initial=0))

    @property
    def nbytes(self) -> int:
        """With the padding behind each payload."""
        return self._starts[-1]

    def chunk_nbytes(self, start: int, stop: int) -> int:
        """How much of the block lies between these bytes of it."""
        return max(min(self.nbytes, stop) - start, 0)

    def within(self, start: int, stop: int) -> Iterator[Piece]:
        """Yields what lies between these bytes of the block, which are multiples of 64, in order."""
        for (src, dst, nbytes), first in zip(self._payloads, self._starts, strict=False):
            begin, end = max(start - first, 0), min(stop - first, nbytes)
            if begin < end:
                yield Piece(src, dst, begin, end, first + begin - start)


class Route(ABC):
    """One round 2 as one rank goes through it.

    Args:
        hosts: Who is where.
        parts_for: By destination, or -1 for all: this rank's payload, as parts in order.
        sent: The blocks that this host sends.
        received: The blocks that this host receives, one per host.
        longest_nbytes: The length of the longest block of any host.
    """

    def __init__(
        self,
        hosts: HostMap,
        parts_for: Mapping[int, Sequence[memoryview]],
        sent: Sequence[Block],
        received: Sequence[Block],
        longest_nbytes: int,
    ) -> None:
        self.longest_nbytes = longest_nbytes
        self._hosts = hosts
        self._parts_for = parts_for
        self._sent = sent
        self._received = received

    @abstractmethod
    def send(
        self,
        outer: Transport,
        outgoing: Outgoing,
        start: int,
        stop: int,
        landing: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        """(leaders) Exchanges a chunk; returns what came from each host, in `landing` or elsewhere."""

    def upload(self, start: int, stop: int) -> list[memoryview]:
        """This rank's part of a chunk, for its leader."""
        own = [piece for block in self._sent for piece in block.within(start, stop) if piece.src == self._hosts.rank]
        return [part for piece in own for part in self._own(piece)]

    def _own(self, piece: Piece) -> Iterator[memoryview]:
        return pieces(self._parts_for[piece.dst], piece.begin, piece.end)

    def outgoing(self, start: int, stop: int, uploads: Mapping[int, memoryview]) -> Outgoing:
        """(leader) Puts a chunk together from its own parts and what the other ranks of the host have uploaded."""
        taken = dict.fromkeys(uploads, 0)
        return [list(self._outgoing(block, start, stop, uploads, taken)) for block in self._sent]

    def _outgoing(
        self, block: Block, start: int, stop: int, uploads: Mapping[int, memoryview], taken: dict[int, int]
    ) -> Iterator[memoryview]:
        at = 0
        for piece in block.within(start, stop):
            if piece.at > at:
                yield _ZEROS[: piece.at - at]
            nbytes = piece.end - piece.begin
            if piece.src == self._hosts.rank:
                yield from self._own(piece)
            else:
                begin = taken[piece.src]
                taken[piece.src] = begin + nbytes
                yield uploads[piece.src][begin : begin + nbytes]
            at = piece.at + nbytes
        if (rest := block.chunk_nbytes(start, stop) - at) > 0:
            yield _ZEROS[:rest]

    def landing_nbytes(self, start: int, stop: int) -> int:
        """How much a chunk of all hosts takes, one host's behind the other's."""
        return sum(block.chunk_nbytes(start, stop) for block in self._received)

    def landing_places(self, start: int, stop: int, landing: memoryview) -> list[memoryview]:
        """Cuts the memory for a chunk into one view per host."""
        ends = list(accumulate((block.chunk_nbytes(start, stop) for block in self._received), initial=0))
        return [landing[begin:end] for begin, end in pairwise(ends)]

    def take(self, start: int, stop: int, landed: memoryview, into: Sequence[memoryview]) -> None:
        """Copies what is for this rank to where it belongs."""
        for block, place in zip(self._received, self.landing_places(start, stop, landed), strict=True):
            for piece in block.within(start, stop):
                if piece.dst in (_EVERYBODY, self._hosts.rank):
                    nbytes = piece.end - piece.begin
                    into[piece.src][piece.begin : piece.end] = place[piece.at : piece.at + nbytes]


class _AllGather(Route):
    """One block per host, for all."""

    def send(
        self,
        outer: Transport,
        outgoing: Outgoing,
        start: int,
        stop: int,
        landing: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        sizes = [len(place) for place in landing]
        return outer.all_gather_exact(outgoing[0], sizes, into=landing, timeout_s=timeout_s)


class _AllToAll(Route):
    """One block per pair of hosts."""

    def __init__(
        self, hosts: HostMap, parts_per_peer: Sequence[Sequence[memoryview]], blocks: Sequence[Sequence[Block]]
    ) -> None:
        longest_nbytes = max(block.nbytes for row in blocks for block in row)
        received = [row[hosts.host] for row in blocks]
        super().__init__(hosts, dict(enumerate(parts_per_peer)), blocks[hosts.host], received, longest_nbytes)
        self._blocks = blocks

    def send(
        self,
        outer: Transport,
        outgoing: Outgoing,
        start: int,
        stop: int,
        landing: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        sizes = [[block.chunk_nbytes(start, stop) for block in row] for row in self._blocks]
        return outer.all_to_all_exact(outgoing, sizes, into=landing, timeout_s=timeout_s)


def all_gather_route(hosts: HostMap, parts: Sequence[memoryview], nbytes_per_rank: Sequence[int]) -> Route:
    """Every rank gets every payload."""
    blocks = [Block([(rank, _EVERYBODY, nbytes_per_rank[rank]) for rank in ranks]) for ranks in hosts.members]
    longest_nbytes = max(block.nbytes for block in blocks)
    return _AllGather(hosts, {_EVERYBODY: parts}, [blocks[hosts.host]], blocks, longest_nbytes)


def all_to_all_route(
    hosts: HostMap, parts_per_peer: Sequence[Sequence[memoryview]], nbytes_matrix: Sequence[Sequence[int]]
) -> Route:
    """Every rank gets what is meant for it, and every host what is meant for its ranks."""
    blocks = [
        [
            Block([(src, dst, nbytes) for src in senders for dst in receivers if (nbytes := nbytes_matrix[src][dst])])
            for receivers in hosts.members
        ]
        for senders in hosts.members
    ]
    return _AllToAll(hosts, parts_per_peer, blocks)
