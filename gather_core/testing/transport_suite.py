"""What the clauses of the transport contract stand on: the hooks of its author; how verbs are called and checked."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import ClassVar

import pytest

from gather_core.memory import ALIGNMENT, align, aligned_buffer
from gather_core.testing.member import TIMEOUT_S, Member, give_up, run_member
from gather_core.testing.thread_ranks import local_contexts, run_in_threads
from gather_core.transport import GroupContext, Transport

VERBS = ("all_gather_slots", "all_gather_exact", "all_to_all_exact")
_GUARD = 0xA5


class TransportSuite:
    """The hooks; see `TransportContract`."""

    world_sizes: ClassVar[Sequence[int]] = (1, 2, 3)
    """Every clause about bytes is checked with each of them, all others with the largest."""
    grace_s: ClassVar[float] = 5.0
    """How much later than its deadline a wait may end, and how long an abort may take to reach a peer, in seconds."""
    scenario_timeout_s: ClassVar[float] = 60.0
    """No test takes longer than about this, whatever the transport does."""

    def make_transport(self) -> Transport:
        """Returns a new transport, not open; called on every rank, also several times."""
        raise NotImplementedError("override make_transport")

    def contexts(self, world_size: int) -> Sequence[GroupContext]:
        """Returns what `Transport.join` would on each rank of a new group, for ranks that are threads."""
        return local_contexts(world_size)

    def run_ranks(self, world_size: int, body: Callable[[GroupContext], None]) -> None:
        """Runs `body` once on each rank, with its context; raises an AssertionError where one fails or is stuck."""
        run_in_threads(self.contexts(world_size), body, self.scenario_timeout_s, give_up)

    def run(self, world_size: int, body: Callable[[Member], None]) -> None:
        """Runs the body of a test on all ranks; `body` may travel to other processes."""
        make_transport, timeout_s = self.make_transport, self.scenario_timeout_s

        def on_rank(context: GroupContext) -> None:
            run_member(context, make_transport, body, timeout_s)

        self.run_ranks(world_size, on_rank)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Makes one test per world size of those that ask for it."""
        if "world_size" in metafunc.fixturenames:
            metafunc.parametrize("world_size", self.world_sizes)

    def __getstate__(self) -> dict[str, object]:
        return {}  # a test that travels to another process takes no fixture along

    def _largest(self) -> int:
        return max(self.world_sizes)

    def _with_peers(self) -> int:
        """The largest world size; skips the test where there is never more than one rank."""
        if self._largest() < 2:
            pytest.skip("there is never a peer: world_sizes has no number above 1")
        return self._largest()

    def _with_deadline(self) -> int:
        """As `_with_peers`; skips the test where the transport says that it keeps no deadline."""
        if not self.make_transport().capabilities.deadline:
            pytest.skip("capabilities.deadline is False: waits end when the library below says")
        return self._with_peers()


@lru_cache(maxsize=64)
def payload(seed: object, nbytes: int) -> bytes:
    """Bytes that are like no others; `seed` is anything with a repr."""
    return Random(repr(seed)).randbytes(nbytes)


def address(view: memoryview) -> int:
    """Where a view's memory starts."""
    import numpy as np

    return int(np.frombuffer(view, np.uint8).ctypes.data)


def is_aligned(view: memoryview) -> bool:
    """Whether it starts at a multiple of 64; an empty view is nowhere."""
    return len(view) == 0 or address(view) % ALIGNMENT == 0


def differing(got: Sequence[memoryview | bytes], expected: Sequence[bytes]) -> str:
    """Says what is wrong with what ranks have sent; empty if nothing is."""
    if len(got) != len(expected):
        return f"{len(got)} views for {len(expected)} ranks"
    for rank, (view, content) in enumerate(zip(got, expected, strict=True)):
        found = bytes(view)
        if found == content:
            continue
        if found in expected:
            return f"at position {rank} is what rank {expected.index(found)} sent"
        if len(found) != len(content):
            return f"what rank {rank} sent arrives with {len(found)} of its {len(content)} bytes"
        return f"what rank {rank} sent, {len(content)} bytes, arrives changed"
    return ""


def exchange_slots(transport: Transport, own: bytes, timeout_s: float = TIMEOUT_S) -> Sequence[memoryview]:
    """Round 1 with these bytes."""
    slot = transport.slot(len(own))
    assert len(slot) >= len(own), f"slot({len(own)}) has {len(slot)} bytes"
    slot[: len(own)] = own
    return transport.all_gather_slots(len(own), timeout_s=timeout_s)


class Guarded:
    """Memory for `into` with guard bytes around it."""

    def __init__(self, nbytes: int) -> None:
        self._block = aligned_buffer(align(nbytes) + 2 * ALIGNMENT)
        self._block[:] = bytes([_GUARD]) * len(self._block)
        self._end = ALIGNMENT + nbytes
        self.view = self._block[ALIGNMENT : self._end]

    def is_intact(self) -> bool:
        """Whether nobody has written around it."""
        around = bytes(self._block[:ALIGNMENT]) + bytes(self._block[self._end :])
        return around == bytes([_GUARD]) * len(around)


def as_parts(content: bytes) -> list[memoryview]:
    """A payload in three uneven parts, the middle one empty, the last one writable."""
    return [memoryview(content)[:7], memoryview(b""), memoryview(bytearray(content[7:]))] if content else []


class ExactExchange:
    """One call of an exact verb on one rank, and what it was given.

    Args:
        transport: Open.
        matrix: What each rank sends to each, in bytes; a row of equal numbers with `routed=False`.
        routed: Whether it is `all_to_all_exact`.
        salt: Tells exchanges apart.
    """

    def __init__(self, transport: Transport, matrix: Sequence[Sequence[int]], *, routed: bool, salt: object) -> None:
        rank = transport.rank
        self._transport = transport
        self._matrix = matrix
        self._routed = routed
        sent = [payload((salt, rank, dst if routed else -1), nbytes) for dst, nbytes in enumerate(matrix[rank])]
        self.parts_per_peer = [as_parts(content) for content in sent]
        self._sent = [list(map(bytes, parts)) for parts in self.parts_per_peer]
        self.expected = [payload((salt, src, rank if routed else -1), row[rank]) for src, row in enumerate(matrix)]
        self.into = [Guarded(row[rank]) for row in matrix]
        self.got: Sequence[memoryview] = ()

    def call(self, timeout_s: float = TIMEOUT_S) -> Sequence[memoryview]:
        """Calls the verb."""
        into = [guarded.view for guarded in self.into]
        if self._routed:
            self.got = self._transport.all_to_all_exact(
                self.parts_per_peer, self._matrix, into=into, timeout_s=timeout_s
            )
        else:
            nbytes_per_rank = [row[0] for row in self._matrix]
            parts = self.parts_per_peer[self._transport.rank]
            self.got = self._transport.all_gather_exact(parts, nbytes_per_rank, into=into, timeout_s=timeout_s)
        return self.got

    def wrong(self) -> str:
        """Says which payload did not arrive; empty if all did."""
        return differing(self.got, self.expected)

    def parts_are_unchanged(self) -> bool:
        """Whether the parts hold what they held before the call."""
        return self._sent == [list(map(bytes, parts)) for parts in self.parts_per_peer]

    def ownership_error(self) -> str:
        """Says what is wrong with the memory that was returned; empty if nothing is."""
        for src, (view, guarded) in enumerate(zip(self.got, self.into, strict=True)):
            is_into = len(view) == len(guarded.view) and (len(view) == 0 or address(view) == address(guarded.view))
            if not is_into and not view.readonly:
                return f"the payload of rank {src} is neither into[{src}] nor read-only"
            if not is_aligned(view):
                return f"the payload of rank {src} is not aligned to {ALIGNMENT} bytes"
        return ""


def gathered_sizes(world_size: int) -> list[list[list[int]]]:
    """Matrices for `all_gather_exact`: nothing, sizes around 64 bytes and a slot, one rank much larger, all large."""
    ladder = [0, 1, 63, 64, 65, 1023, 1024, 1025, 3000]
    rows = [[0] * world_size, [5000] * world_size]
    rows += [[ladder[(start + 3 * rank) % len(ladder)] for rank in range(world_size)] for start in range(len(ladder))]
    rows += [[9000 if rank == large else 0 for rank in range(world_size)] for large in {0, world_size - 1}]
    return [[[nbytes] * world_size for nbytes in row] for row in rows]


def routed_sizes(world_size: int) -> list[list[list[int]]]:
    """Matrices for `all_to_all_exact`: nothing, uneven, one column (gather), one row (scatter), one pair."""
    ranks, last = range(world_size), world_size - 1
    uneven = [[(1000 * src + 777 * dst) % 2500 for dst in ranks] for src in ranks]
    around = [[(0, 1, 63, 64, 65)[(2 * src + dst) % 5] for dst in ranks] for src in ranks]
    column = [[1025 * (src + 1) if dst == last else 0 for dst in ranks] for src in ranks]
    row = [[3000 + dst if src == 0 else 0 for dst in ranks] for src in ranks]
    pair = [[9000 if (src, dst) == (last, 0) else 0 for dst in ranks] for src in ranks]
    return [[[0] * world_size for _ in ranks], uneven, around, column, row, pair]


def call_verb(transport: Transport, verb: str, world_size: int, *, salt: object, timeout_s: float = TIMEOUT_S) -> str:
    """Calls one of the verbs with a hundred bytes or so per rank; returns what is wrong with what arrives, if any."""
    if verb == "all_gather_slots":
        contents = [payload((salt, rank), 100 + rank) for rank in range(world_size)]
        views = exchange_slots(transport, contents[transport.rank], timeout_s)
        return differing([view[:nbytes] for view, nbytes in zip(views, map(len, contents), strict=True)], contents)
    matrix = [[100 + rank] * world_size for rank in range(world_size)]
    exchange = ExactExchange(transport, matrix, routed=verb == "all_to_all_exact", salt=salt)
    exchange.call(timeout_s)
    return exchange.wrong()
