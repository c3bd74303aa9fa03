"""Round 2 out of round 1: chunks over a transport that only exchanges slots."""

import array
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gather_core import Capabilities, Codec, Frames, Gatherer, SlotOverflowError
from gather_core.chunks import all_gather_by_slots, all_to_all_by_all_gather, payload_views, pieces
from gather_core.local_store import ScopedStore
from gather_core.memory import align, aligned_buffer
from gather_core.slot import HEADER_NBYTES, payload_nbytes
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport

SLOT = 2048
"""Above 1024 plus 8 per rank, so that a Gatherer does not raise it."""
SIZES = st.sampled_from([0, 1, 63, 64, 65, SLOT - 1, SLOT, SLOT + 1, 2 * SLOT - 1, 2 * SLOT, 2 * SLOT + 1, 5000])


class RigidThreads(ThreadsTransport):
    """Threads whose slots cannot grow, so that what is larger goes through round 2."""

    name = "rigid"
    capabilities = Capabilities(locality="process", elastic_slots=False)

    def slot(self, nbytes: int) -> memoryview:
        assert nbytes <= self.slot_nbytes
        return super().slot(nbytes)


class BytesCodec(Codec):
    """Bytes as they are, in one frame per element."""

    name = "bytes-in-test"

    def encode(self, obj: object) -> Frames:
        assert isinstance(obj, list)
        return obj

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        return [bytes(frame) for frame in frames]


def transport_of(member: ThreadRank) -> ThreadsTransport:
    transport = RigidThreads()
    context = RigidThreads.join(member)
    transport.open(context, SLOT, timeout_s=5)
    return transport


def content(src: int, dst: int, nbytes: int) -> bytes:
    return bytes((src * 31 + dst * 7 + i) % 251 for i in range(nbytes))


def cut(payload: bytes, at: int) -> list[memoryview]:
    """A payload in uneven parts, an empty one among them."""
    return [memoryview(payload)[:at], memoryview(b""), memoryview(payload)[at:]]


def test_payload_views_start_at_multiples_of_64_and_have_exactly_the_length() -> None:
    sizes = [1, 0, 64, 65, 3]
    views = payload_views(memoryview(bytearray(sum(map(align, sizes)))), sizes)
    assert [len(view) for view in views] == sizes
    into = memoryview(bytearray(b"." * 320))
    for number, view in enumerate(payload_views(into, sizes)):
        view[:] = bytes([number]) * len(view)
    assert [into[start] for start in (0, 64, 128, 256)] == [0, 2, 3, 4]


@given(st.lists(st.binary(max_size=20), max_size=8), st.integers(0, 100), st.integers(0, 100))
def test_pieces_joined_are_the_slice_of_the_joined_parts(parts: list[bytes], start: int, length: int) -> None:
    views = [memoryview(part) for part in parts]
    assert b"".join(pieces(views, start, start + length)) == b"".join(parts)[start : start + length]


@given(st.lists(SIZES, min_size=1, max_size=4), st.integers(0, 2000))
@settings(max_examples=40)
def test_every_rank_gets_every_payload(sizes: list[int], at: int) -> None:
    def body(member: ThreadRank) -> list[bytes]:
        transport = transport_of(member)
        parts = cut(content(member.rank, 0, sizes[member.rank]), at)
        into = [aligned_buffer(nbytes) for nbytes in sizes]
        return [bytes(view) for view in all_gather_by_slots(transport, parts, sizes, into=into, timeout_s=5)]

    expected = [content(rank, 0, nbytes) for rank, nbytes in enumerate(sizes)]
    assert ThreadGroup(len(sizes)).run(body) == [expected] * len(sizes)


@given(st.integers(1, 3).flatmap(lambda w: st.lists(st.lists(SIZES, min_size=w, max_size=w), min_size=w, max_size=w)))
@settings(max_examples=40)
def test_every_rank_gets_what_is_meant_for_it(matrix: list[list[int]]) -> None:
    world_size = len(matrix)

    def body(member: ThreadRank) -> list[bytes]:
        transport = transport_of(member)
        own = matrix[member.rank]
        parts = [cut(content(member.rank, dst, own[dst]), 100) for dst in range(world_size)]
        into = [aligned_buffer(row[member.rank]) for row in matrix]
        return [bytes(view) for view in all_to_all_by_all_gather(transport, parts, matrix, into=into, timeout_s=5)]

    expected = [[content(src, dst, matrix[src][dst]) for src in range(world_size)] for dst in range(world_size)]
    assert ThreadGroup(world_size).run(body) == expected


def frame_for(slot_share: int) -> list[bytes]:
    """One frame whose slot is full, plus so many bytes."""
    return [b"p" * (SLOT - HEADER_NBYTES - 64 + slot_share)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("more", [-1, 0, 1, 1000, 5 * SLOT])
def test_a_gatherer_on_rigid_slots_takes_a_second_round_for_what_does_not_fit(world_size: int, more: int) -> None:
    def body(member: ThreadRank) -> tuple[object, object, object, int]:
        own = frame_for(more if member.rank == 0 else -500)
        with Gatherer(BytesCodec(), RigidThreads(), group=member, slot_nbytes=SLOT, timeout_s=10) as gatherer:
            everything = gatherer.all_gather(own)
            on_last = gatherer.gather(own, dst=world_size - 1)
            of_root = gatherer.broadcast(own, src=0)
            return everything, on_last, of_root, gatherer.stats.second_rounds

    expected = [frame_for(more if rank == 0 else -500) for rank in range(world_size)]
    rounds = 3 if more > 0 else 0
    assert ThreadGroup(world_size).run(body) == [
        (expected, expected if rank == world_size - 1 else None, expected[0], rounds) for rank in range(world_size)
    ]


def test_what_needed_a_second_round_says_which_slot_would_have_saved_it() -> None:
    def body(member: ThreadRank) -> tuple[str, int]:
        with Gatherer(BytesCodec(), RigidThreads(), group=member, slot_nbytes=SLOT, timeout_s=10) as gatherer:
            gatherer.all_gather(frame_for(member.rank * 640))
            needed = HEADER_NBYTES + payload_nbytes(frame_for(640))
            return gatherer.describe(), needed

    for described, needed in ThreadGroup(2).run(body):  # type: ignore[misc]
        assert f"1 of 1 operations needed a second round, which slot_nbytes={needed} would have saved" in described


def test_with_overflow_error_nothing_larger_is_sent_and_the_group_goes_on() -> None:
    def body(member: ThreadRank) -> tuple[dict[int, int], object]:
        transport = RigidThreads()
        with Gatherer(
            BytesCodec(), transport, group=member, slot_nbytes=SLOT, overflow="error", timeout_s=10
        ) as gatherer:
            with pytest.raises(SlotOverflowError) as caught:
                gatherer.all_gather(frame_for(member.rank))
            return caught.value.nbytes, gatherer.all_gather([b"ok"])

    assert ThreadGroup(3).run(body) == [({1: SLOT + 64, 2: SLOT + 64}, [[b"ok"]] * 3)] * 3


def test_frames_of_signed_bytes_travel_in_a_second_round_too() -> None:
    class SignedBytes(BytesCodec):
        name = "signed-in-test"

        def encode(self, obj: object) -> Frames:
            return [memoryview(array.array("b", [-1] * 3000))]

    def body(member: ThreadRank) -> object:
        with Gatherer(SignedBytes(), RigidThreads(), group=member, slot_nbytes=SLOT, timeout_s=5) as gatherer:
            return gatherer.all_gather(None)

    assert ThreadGroup(2).run(body) == [[[b"\xff" * 3000]] * 2] * 2


def test_a_scoped_store_keeps_two_gatherers_apart() -> None:
    store = ThreadGroup(1).store
    first, second = ScopedStore("1", store), ScopedStore("2", store)
    first.set("key", "a")
    second.set("key", "b")
    assert (first.get("key"), second.get("key"), store.get("1/key")) == (b"a", b"b", b"a")
    assert first.delete_key("key")
    assert not first.check(["key"])
    assert second.check(["key"])
