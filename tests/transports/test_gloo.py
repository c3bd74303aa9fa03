"""What is special to the Gloo transport: which way bytes travel, and how it ends whatever is pending."""

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
from gather_transports.gloo import GlooTransport
from gather_transports.gloo_choice import Choice
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


@pytest.mark.parametrize(
    ("world_size", "slot_nbytes", "num_hosts", "way", "carried_nbytes"),
    [
        (2, 16 << 10, 1, "hub", 1 << 20),
        (2, 2 << 20, 1, "hub", 2 << 20),
        (4, 16 << 10, 1, "hub", 699_008),
        (16, 16 << 10, 1, "hub", 34_944),
        (2, 16 << 10, 2, "hub", 1 << 20),
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
    assert Choice(world_size, num_hosts).round_1(slot_nbytes) == (way, carried_nbytes)


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


@pytest.mark.parametrize("spec", [HUB, DIRECT])
def test_a_rank_that_times_out_says_whom_it_was_waiting_for(pool: RankPool, spec: str) -> None:
    def body(rank: int, world_size: int, spec: str) -> str:
        transport = opened(spec)
        if rank == 1:  # comes only when the others have given up
            time.sleep(1.5)
        try:
            transport.all_gather_slots(8, timeout_s=0.3)
        except TransportError as exc:
            return str(exc)
        finally:
            transport.close()
        return "no error"

    texts = pool.values(3, body, spec)
    assert texts[0] == "not all ranks came within 0.3 s; this one was waiting for rank 1"
    assert spec == HUB or texts[2] == texts[0]
