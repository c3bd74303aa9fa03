"""The Gloo transport by itself: every way in which bytes travel, and how it ends whatever is pending."""

import os
import signal
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from gather_core.deadline import Deadline
from gather_core.errors import GatherError, PeerLostError, ProtocolError, TransportError
from gather_core.local_store import ScopedStore
from gather_core.memory import aligned_buffer
from gather_core.registry import get_transport
from gather_transports.gloo import GlooTransport, Table
from gather_transports.gloo_exchanges import PackedSlots
from rank_pool import RankPool, reached

SLOT = 2048
HUB, ALL_TO_ALL, DIRECT = (
    "gloo",
    "gloo:hub_up_to_nbytes=0",
    "gloo:hub_up_to_nbytes=0,all_to_all_up_to_nbytes=0,chunk_nbytes=1000",
)
WAYS = [HUB, ALL_TO_ALL, DIRECT]


def opened(spec: str, scope: str = "test", slot_nbytes: int = SLOT) -> Any:
    context = GlooTransport.join(None)
    transport = get_transport(spec)
    store = ScopedStore(scope, context.store)
    hosts = (0,) * context.world_size
    transport.open(replace(context, store=store, scope=scope, hosts=hosts), slot_nbytes, timeout_s=20)
    return transport


def content(rank: int, nbytes: int, salt: int = 0) -> bytes:
    return bytes((rank * 31 + salt * 7 + i) % 251 for i in range(nbytes))


def as_parts(payload: bytes) -> list[memoryview]:
    """A payload in uneven parts, an empty one among them."""
    return [memoryview(payload)[:7], memoryview(b""), memoryview(payload)[7:]] if payload else []


@pytest.mark.parametrize("spec", WAYS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_rank_gets_what_each_has_filled_round_after_round(pool: RankPool, spec: str, world_size: int) -> None:
    def body(rank: int, world_size: int, spec: str) -> list[int]:
        transport = opened(spec)
        wrong = []
        most = min(transport.round_1_nbytes, 500_000)
        for number in range(40):
            filled = [(37 * r + 211 * number) % (SLOT + 1) for r in range(world_size)]
            filled[number % world_size] = [SLOT, most, 0, 64, 65][number % 5]
            transport.slot(filled[rank])[:] = content(rank, filled[rank], number)
            views = transport.all_gather_slots(filled[rank], timeout_s=20)
            found = [bytes(view[:nbytes]) for view, nbytes in zip(views, filled, strict=True)]
            fine = found == [content(r, nbytes, number) for r, nbytes in enumerate(filled)]
            if not fine or not all(view.readonly for view in views):
                wrong.append(number)
        transport.close()
        return wrong

    assert pool.values(world_size, body, spec) == [[]] * world_size


@pytest.mark.parametrize("spec", WAYS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_payloads_of_any_sizes_reach_every_rank_exactly(pool: RankPool, spec: str, world_size: int) -> None:
    def body(rank: int, world_size: int, spec: str) -> list[list[int]]:
        transport = opened(spec)
        wrong = []
        for sizes in [[0] * 4, [1, 64, 65, 0], [0, 0, 0, 5000], [5000, 0, 0, 0], [3000, 2000, 2999, 1], [70_000] * 4]:
            sizes = sizes[:world_size]
            into = [aligned_buffer(nbytes) for nbytes in sizes]
            parts = as_parts(content(rank, sizes[rank]))
            payloads = transport.all_gather_exact(parts, sizes, into=into, timeout_s=20)
            if list(map(bytes, payloads)) != [content(r, nbytes) for r, nbytes in enumerate(sizes)]:
                wrong.append(sizes)
        transport.close()
        return wrong

    assert pool.values(world_size, body, spec) == [[]] * world_size


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_routed_payloads_reach_the_rank_that_they_are_for(pool: RankPool, world_size: int) -> None:
    def body(rank: int, world_size: int, spec: str) -> bool:
        transport = opened(spec)
        matrix = [[(1000 * src + 777 * dst) % 2500 for dst in range(world_size)] for src in range(world_size)]
        parts = [as_parts(content(rank, matrix[rank][dst], dst)) for dst in range(world_size)]
        into = [aligned_buffer(row[rank]) for row in matrix]
        payloads = transport.all_to_all_exact(parts, matrix, into=into, timeout_s=20)
        transport.close()
        return list(map(bytes, payloads)) == [content(src, matrix[src][rank], rank) for src in range(world_size)]

    assert pool.values(world_size, body, DIRECT) == [True] * world_size


@pytest.mark.parametrize(
    ("world_size", "slot_nbytes", "num_hosts", "way", "carried_nbytes"),
    [
        (2, 16 << 10, 1, "hub", 1 << 20),
        (2, 2 << 20, 1, "hub", 2 << 20),
        (4, 16 << 10, 1, "hub", 699_008),
        (16, 16 << 10, 1, "hub", 34_944),
        (4, 16 << 10, 2, "hub", 21_824),
        (64, 16 << 10, 1, "all_to_all", 532_608),
        (8, 16 << 10, 2, "all_to_all", 1 << 20),
        (400, 512 << 10, 2, "all_to_all", 512 << 10),
        (4, 2 << 20, 1, "direct", 2 << 20),
        (1, 16 << 10, 1, "direct", 16 << 10),
    ],
)
def test_few_bytes_go_through_a_hub_and_more_or_more_hosts_do_not(
    world_size: int, slot_nbytes: int, num_hosts: int, way: str, carried_nbytes: int
) -> None:
    assert Table(world_size, num_hosts).round_1(slot_nbytes) == (way, carried_nbytes)


@pytest.mark.parametrize("spec", WAYS)
def test_a_rank_that_closes_at_once_has_still_sent_everything(pool: RankPool, spec: str) -> None:
    def body(rank: int, world_size: int, spec: str) -> bool:
        nbytes = 4 << 20
        transport = opened(spec, slot_nbytes=nbytes)
        transport.slot(nbytes)[:] = bytes([rank]) * nbytes
        views = transport.all_gather_slots(nbytes, timeout_s=20)
        if rank == 0:
            transport.close()
            reached("closed")
        fine = [bytes(view) == bytes([r]) * nbytes for r, view in enumerate(views)]
        transport.close()
        return all(fine)

    assert pool.values(2, body, spec) == [True, True]


@pytest.mark.parametrize("spec", WAYS)
def test_an_abort_ends_what_is_pending_here_and_at_the_peers_at_once(pool: RankPool, spec: str) -> None:
    def body(rank: int, world_size: int, spec: str) -> tuple[str, float]:
        transport = opened(spec)
        if rank == 1:
            threading.Timer(0.5, transport.abort, ("because",)).start()
        if rank == 2:  # comes only when the others have given up
            time.sleep(3)
        started = time.monotonic()
        try:
            transport.all_gather_slots(64, timeout_s=40)
        except TransportError as exc:
            return f"{type(exc).__name__}: {exc}", time.monotonic() - started
        finally:
            transport.close()
        return "no error", time.monotonic() - started

    texts, seconds = zip(*pool.values(3, body, spec), strict=True)
    assert texts[1] == "AbortedError: because"
    assert texts[0].startswith("PeerLostError") or texts[0].startswith("TransportTimeoutError")
    assert texts[2].startswith("PeerLostError")
    assert max(seconds) < 4  # 0.5 s until the abort


def test_a_lost_connection_names_the_rank_behind_it(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[int, ...]:
        transport = opened(HUB)
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            transport.all_gather_slots(64, timeout_s=20)
        except PeerLostError as exc:
            transport.close()
            return exc.ranks
        return ()

    outcomes = pool.run(3, body, expect_death=[2])
    assert outcomes[0].value == (2,)
    assert outcomes[1].value == (0,), "which gave up, and so closed"


def test_a_length_that_no_slot_has_is_a_protocol_error_at_the_hub(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        transport = opened(HUB)
        transport._slots.nbytes = transport.round_1_nbytes + rank
        try:
            transport._perform(transport._slots, Deadline(3))
        except GatherError as exc:
            return f"{type(exc).__name__}: {exc}"
        finally:
            transport.close()
        return "no error"

    assert "ProtocolError: a rank claims to fill 1048577 of the 1048576 bytes of its slot" in pool.values(2, body)[0]


def test_a_length_that_no_slot_has_is_a_protocol_error_at_a_spoke() -> None:
    packed = PackedSlots(2, SLOT)
    packed.pack([64, 1 << 62], [aligned_buffer(SLOT)])
    with pytest.raises(ProtocolError, match="claims to fill"):
        packed.unpack()


def test_open_and_close_leave_no_thread_and_no_descriptor(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[int, int]:
        import os

        def counts() -> tuple[int, int]:
            return threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

        def cycle(number: int) -> None:
            transport = opened(HUB, scope=f"cycle/{number}")
            transport.all_gather_slots(64, timeout_s=20)
            transport.close()

        for number in range(3):
            cycle(number)
        before = counts()
        for number in range(3, 23):
            cycle(number)
        deadline = time.monotonic() + 5
        while counts() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        after = counts()
        return after[0] - before[0], after[1] - before[1]

    for threads, descriptors in pool.values(3, body):
        assert threads <= 0
        assert descriptors <= 0
