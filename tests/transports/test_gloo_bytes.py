"""How many bytes Gloo's exchanges move, to whom, and that all of them arrive: seen by counting what is posted."""

import mmap
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from gather_core import Gatherer
from gather_core.errors import GatherError, PeerLostError
from gather_core.local_store import ScopedStore
from gather_core.memory import aligned_buffer
from gather_core.testing.transport_suite import payload
from gather_transports.gloo import GlooTransport
from gather_transports.gloo_exchanges import Stream
from rank_pool import RankPool

SLOT = 1024
CHUNK = 1000
TIMEOUT_S = 20.0


class CountingGroup:
    """A process group that counts bytes of what is posted on it, by peer."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()

    def send(self, tensors: Sequence[Any], peer: int, tag: int) -> Any:
        self.sent[peer] += sum(tensor.numel() for tensor in tensors)
        return self._group.send(tensors, peer, tag)

    def recv(self, tensors: Sequence[Any], peer: int, tag: int) -> Any:
        self.received[peer] += sum(tensor.numel() for tensor in tensors)
        return self._group.recv(tensors, peer, tag)

    def alltoall_base(self, into: Any, source: Any, receives: Any, sends: Sequence[int], options: Any) -> Any:
        self.sent.update(dict(enumerate(sends)))
        return self._group.alltoall_base(into, source, receives, sends, options)


def count(transport: GlooTransport) -> CountingGroup:
    """Counts from here on."""
    assert transport._link is not None
    counting = CountingGroup(transport._link._group[0])
    transport._link._group[0] = counting
    return counting


def opened(**options: int) -> GlooTransport:
    context = GlooTransport.join(None)
    transport = GlooTransport(**options)
    store = ScopedStore("bytes", context.store)
    transport.open(replace(context, store=store, hosts=(0,) * context.world_size), SLOT, timeout_s=TIMEOUT_S)
    return transport


def moved(counter: Counter[int]) -> dict[int, int]:
    """Without the peers to or from which there was nothing."""
    return {peer: nbytes for peer, nbytes in counter.items() if nbytes}


def in_parts(content: bytes) -> list[memoryview]:
    """Parts that end nowhere near a chunk's border, one of them empty."""
    first, second = sorted((min(7, len(content)), len(content) // 3))
    return [memoryview(content)[start:stop] for start, stop in pairwise((0, first, first, second, len(content)))]


def gather(transport: GlooTransport, sizes: Sequence[int], salt: object = 0) -> bool:
    """One exact all-gather; returns whether all payloads arrived."""
    contents = [payload((salt, rank), nbytes) for rank, nbytes in enumerate(sizes)]
    into = [aligned_buffer(nbytes) for nbytes in sizes]
    got = transport.all_gather_exact(in_parts(contents[transport.rank]), sizes, into=into, timeout_s=TIMEOUT_S)
    return [bytes(view) for view in got] == contents


def test_a_skewed_exchange_moves_what_each_rank_has_and_nothing_more(pool: RankPool) -> None:
    def body(rank: int, world_size: int, sizes: Sequence[int]) -> tuple[bool, dict[int, int], dict[int, int]]:
        transport = opened(chunk_nbytes=CHUNK)
        counting = count(transport)
        arrived = gather(transport, sizes)
        sent, received = moved(counting.sent), moved(counting.received)
        transport.close()
        return arrived, sent, received

    sizes = [100, 50_017, 0]
    for rank, outcome in enumerate(pool.values(3, body, sizes)):
        peers = [peer for peer in range(3) if peer != rank]
        sent = {peer: sizes[rank] for peer in peers if sizes[rank]}
        assert outcome == (True, sent, {peer: sizes[peer] for peer in peers if sizes[peer]})


def test_a_routed_exchange_moves_bytes_only_to_the_rank_that_they_are_for(pool: RankPool) -> None:
    def body(rank: int, world_size: int, dst: int) -> tuple[bool, dict[int, int], dict[int, int]]:
        transport = opened(chunk_nbytes=CHUNK)
        sizes = [3 * CHUNK + peer for peer in range(world_size)]
        contents = [payload(peer, nbytes) for peer, nbytes in enumerate(sizes)]
        parts = [in_parts(contents[rank]) if peer == dst else [] for peer in range(world_size)]
        matrix = [[nbytes if peer == dst else 0 for peer in range(world_size)] for nbytes in sizes]
        into = [aligned_buffer(row[rank]) for row in matrix]
        counting = count(transport)
        got = transport.all_to_all_exact(parts, matrix, into=into, timeout_s=TIMEOUT_S)
        sent, received = moved(counting.sent), moved(counting.received)
        transport.close()
        return [bytes(view) for view in got] == [c if rank == dst else b"" for c in contents], sent, received

    outcomes = pool.values(3, body, 1)
    assert outcomes[0] == (True, {1: 3000}, {})
    assert outcomes[1] == (True, {}, {0: 3000, 2: 3002})
    assert outcomes[2] == (True, {1: 3002}, {})


WAYS = [{}, {"hub_up_to_nbytes": 0}, {"hub_up_to_nbytes": 0, "all_to_all_up_to_nbytes": 0}]


@pytest.mark.parametrize("options", WAYS, ids=["hub", "all_to_all", "direct"])
def test_a_slot_travels_as_far_as_it_is_filled(pool: RankPool, options: dict[str, int]) -> None:
    def body(rank: int, world_size: int, options: dict[str, int]) -> int:
        transport = opened(**options)
        counting = count(transport)
        transport.slot(64)[:64] = bytes(64)
        transport.all_gather_slots(64, timeout_s=TIMEOUT_S)
        transport.close()
        return max(counting.sent.values())

    assert max(pool.values(3, body, options)) <= 4 * 64, "at most all slots, and their lengths"


def test_gather_of_a_gatherer_sends_large_objects_to_its_destination_alone(pool: RankPool) -> None:
    def body(rank: int, world_size: int, nbytes: int) -> tuple[list[int] | None, dict[int, int]]:
        transport = GlooTransport()
        with Gatherer("raw", transport) as gatherer:
            gatherer.all_gather(b"")
            counting = count(transport)
            objects = gatherer.gather(bytes([rank]) * nbytes, dst=2)
            return None if objects is None else [len(obj) for obj in objects], moved(counting.sent)

    nbytes = 4 << 20
    outcomes = pool.values(4, body, nbytes)
    assert [lengths for lengths, _ in outcomes] == [None, None, [nbytes] * 4, None]
    for rank, (_, sent) in enumerate(outcomes):
        large = {peer for peer, sent_nbytes in sent.items() if sent_nbytes > nbytes // 2}
        assert large == ({2} if rank != 2 else set()), (rank, sent)
        assert sum(sent.values()) < nbytes + 100_000, (rank, sent)


def test_payloads_of_all_sizes_around_the_borders_of_chunks_arrive(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Sequence[int]]:
        transport = opened(chunk_nbytes=CHUNK)
        around = [chunks * CHUNK + more for chunks in (1, 2, 3) for more in (-1, 0, 1)]
        ladder = [0, 1, *around, 10 * CHUNK]
        rows: list[list[int]] = [
            [ladder[(start + 5 * peer) % len(ladder)] for peer in range(world_size)] for start in range(12)
        ]
        rows += [[nbytes] * world_size for nbytes in ladder]
        lost: list[Sequence[int]] = [sizes for number, sizes in enumerate(rows) if not gather(transport, sizes, number)]
        transport.close()
        return lost

    assert pool.values(3, body) == [[], [], []]


def test_where_no_rank_has_anything_no_message_is_sent(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[bool, int]:
        transport = opened()
        counting = count(transport)
        arrived = gather(transport, [0] * world_size)
        posted = len(counting.sent) + len(counting.received)
        transport.close()
        return arrived, posted

    assert pool.values(3, body) == [(True, 0)] * 3


def test_a_rank_that_is_killed_inside_round_2_is_named_by_the_others(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[int, ...]:
        transport = opened(chunk_nbytes=CHUNK)
        gather(transport, [10] * world_size)
        if rank == 1:
            assert transport._link is not None
            transport._link._group[0] = KilledWhileSending(transport._link._group[0], chunks=3)
        try:
            gather(transport, [20 * CHUNK] * world_size)
        except PeerLostError as exc:
            return exc.ranks
        finally:
            transport.close()
        return ()

    outcomes = pool.run(2, body, expect_death=[1])
    assert outcomes[0].value == (1,)


class KilledWhileSending(CountingGroup):
    """Ends its process when it is to send one more chunk."""

    def __init__(self, group: Any, chunks: int) -> None:
        super().__init__(group)
        self._left = chunks

    def send(self, tensors: Sequence[Any], peer: int, tag: int) -> Any:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().send(tensors, peer, tag)


class OutOfMemory(CountingGroup):
    """Fails when it is to send a large message."""

    def send(self, tensors: Sequence[Any], peer: int, tag: int) -> Any:
        if tensors[0].numel() > 1 << 20:
            raise MemoryError("no room for another message")
        return super().send(tensors, peer, tag)


def test_an_error_inside_round_2_on_one_rank_names_it_on_every_rank(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        transport = GlooTransport()
        with Gatherer("raw", transport, timeout_s=TIMEOUT_S) as gatherer:
            gatherer.all_gather(b"")
            if rank == 1:
                assert transport._link is not None
                transport._link._group[0] = OutOfMemory(transport._link._group[0])
            try:
                gatherer.all_gather(bytes(8 << 20), tag="weights")
            except (GatherError, MemoryError) as exc:
                return f"{type(exc).__name__}: {exc}"
        return "no error"

    first, failing, last = pool.values(3, body)
    assert failing == "MemoryError: no room for another message"
    for text in (first, last):
        assert text.startswith("AbortedError: rank 1 "), text
        assert "MemoryError: no room for another message" in text


def test_offsets_beyond_32_bits_are_kept() -> None:
    """On memory of which one page is touched."""
    start = (1 << 32) + 4096
    with mmap.mmap(-1, start + 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[start + 5] = 77
        stream = Stream([memoryview(memory)[: 1 << 31], memoryview(memory)[1 << 31 :]], start + 8192)
        chunk = stream.chunk(start, start + 64)
        assert chunk.numel() == 64
        assert chunk[:8].tolist() == [0, 0, 0, 0, 0, 77, 0, 0]
        del chunk, stream
