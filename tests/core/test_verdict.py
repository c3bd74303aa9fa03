"""The verdict: the same on every rank, whatever the slots hold."""

import tracemalloc
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gather_core import (
    DesyncError,
    GatherError,
    LimitError,
    Limits,
    ProtocolError,
    RankFailedError,
    RemoteCallError,
    RemoteEncodeError,
    SlotOverflowError,
)
from gather_core.memory import UNBOUNDED
from gather_core.slot import (
    HEADER_NBYTES,
    Agreement,
    Failure,
    Kind,
    checksum_parts,
    pack_header,
    payload_nbytes,
    write_payload,
)
from gather_core.verdict import Terms, Verdict, judge

LIMITS = Limits()
GROUP = 0x1234
SEQ = 5
SLOT_NBYTES = 1024


def terms(world_size: int, *, elastic: bool = False, overflow_is_error: bool = False, limits: Limits = LIMITS) -> Terms:
    round_1_nbytes = UNBOUNDED if elastic else SLOT_NBYTES
    return Terms(GROUP, world_size, SLOT_NBYTES, limits, round_1_nbytes, overflow_is_error)


def block(world_size: int, kind: Kind = Kind.DATA, *, op: int = 1, seq: int = SEQ, group: int = GROUP) -> bytes:
    return Agreement(kind, group, seq, world_size, op).pack()


def slot(
    rank: int, agreement: bytes, frames: Sequence[bytes] = (b"x",), claimed_nbytes: int | None = None
) -> memoryview:
    """A slot with frames; with `claimed_nbytes`, a bare header of a payload that travels in round 2."""
    view = memoryview(bytearray(SLOT_NBYTES))
    if claimed_nbytes is not None:
        view[:HEADER_NBYTES] = pack_header(claimed_nbytes, rank, 1, 0, agreement)
        return view.toreadonly()
    nbytes = payload_nbytes(frames)
    write_payload(view[HEADER_NBYTES : HEADER_NBYTES + nbytes], frames)
    checksum = checksum_parts([view[HEADER_NBYTES : HEADER_NBYTES + nbytes]])
    view[:HEADER_NBYTES] = pack_header(nbytes, rank, len(frames), checksum, agreement)
    return view.toreadonly()


def data(rank: int, world_size: int, *, op: int = 1, seq: int = SEQ, group: int = GROUP) -> memoryview:
    return slot(rank, block(world_size, op=op, seq=seq, group=group))


def error(rank: int, world_size: int, text: str = "ValueError: no", phase: str = "encode") -> memoryview:
    frames = Failure(phase, text, "").frames(SLOT_NBYTES - HEADER_NBYTES)
    return slot(rank, block(world_size, Kind.ERROR, op=0), frames)


def outcome(slots: Sequence[memoryview], expected: bytes, agreed: Terms) -> tuple[type, str]:
    try:
        verdict = judge(slots, expected, agreed)
    except GatherError as exc:
        return type(exc), str(exc)
    return Verdict, repr(verdict)


def peak_nbytes(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_healthy_round_is_one_verdict_with_a_header_per_rank() -> None:
    verdict = judge([data(rank, 3) for rank in range(3)], block(3), terms(3))
    assert [header.rank for header in verdict.headers] == [0, 1, 2]
    assert verdict.nbytes_in_round_2 is None


def test_payloads_that_do_not_fit_travel_in_round_2_and_the_others_do_not() -> None:
    room = SLOT_NBYTES - HEADER_NBYTES
    slots = [slot(0, block(3), claimed_nbytes=room + 64), slot(1, block(3), claimed_nbytes=room), data(2, 3)]
    assert judge(slots, block(3), terms(3)).nbytes_in_round_2 == [room + 64, 0, 0]
    assert judge(slots, block(3), terms(3, elastic=True)).nbytes_in_round_2 is None


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.plan(34)
def test_an_overflow_names_each_rank_and_size(elastic: bool) -> None:
    slots = [slot(0, block(3), claimed_nbytes=6400), data(1, 3), slot(2, block(3), claimed_nbytes=64_000)]
    with pytest.raises(SlotOverflowError) as caught:
        judge(slots, block(3), terms(3, elastic=elastic, overflow_is_error=True))
    assert caught.value.nbytes == {0: 6464, 2: 64_064}
    assert caught.value.slot_nbytes == SLOT_NBYTES
    assert all(part in str(caught.value) for part in ("rank 0 needs 6464", "rank 2 needs 64064", "to 64064"))


SLOT_KINDS = st.sampled_from(["data", "data", "other op", "error", "call error", "large"])


@given(st.lists(SLOT_KINDS, min_size=1, max_size=6), st.booleans())
@example(["error"] * 3, False)
@example(["other op", "error", "data"], False)
def test_the_verdict_is_the_same_on_every_rank(kinds: list[str], overflow_is_error: bool) -> None:
    world_size = len(kinds)
    make: dict[str, Callable[[int], memoryview]] = {
        "data": lambda rank: data(rank, world_size),
        "other op": lambda rank: data(rank, world_size, op=2),
        "error": lambda rank: error(rank, world_size),
        "call error": lambda rank: error(rank, world_size, phase="call"),
        "large": lambda rank: slot(rank, block(world_size), claimed_nbytes=64_000),
    }
    slots = [make[kind](rank) for rank, kind in enumerate(kinds)]
    agreed = terms(world_size, overflow_is_error=overflow_is_error)
    outcomes = {outcome(slots, bytes(own[32:64]), agreed) for own in slots}
    assert len(outcomes) == 1
    kind = outcomes.pop()[0]
    ops = {"other op" if kind == "other op" else "data" for kind in kinds if "error" not in kind}
    if len(ops) == 2:
        assert kind is DesyncError
    elif "error" in kinds:
        assert kind is RemoteEncodeError
    elif "call error" in kinds:
        assert kind is RemoteCallError
    elif "large" in kinds and overflow_is_error:
        assert kind is SlotOverflowError
    else:
        assert kind is Verdict


def test_errors_are_collected_from_all_ranks_with_their_texts() -> None:
    slots = [error(0, 4, "ValueError: a"), data(1, 4), error(2, 4, "KeyError: b"), error(3, 4, "KeyError: b")]
    with pytest.raises(RemoteEncodeError) as caught:
        judge(slots, block(4), terms(4))
    assert caught.value.failures == {0: "ValueError: a", 2: "KeyError: b", 3: "KeyError: b"}
    assert "ranks 2-3 could not" in str(caught.value)


def test_an_error_on_all_ranks_is_raised_on_all() -> None:
    slots = [error(rank, 3, f"ValueError: {rank}") for rank in range(3)]
    with pytest.raises(RemoteEncodeError) as caught:
        judge(slots, block(3, Kind.ERROR, op=0), terms(3))
    assert list(caught.value.failures) == [0, 1, 2]


@pytest.mark.parametrize("text", ["x" * 10_000_000, "\ud800" * 1000, "\U0001f600" * 1000])
def test_an_error_is_read_from_the_smallest_slot_however_long_its_text(text: str) -> None:
    with pytest.raises(RankFailedError) as caught:
        judge([error(0, 2, text), data(1, 2)], block(2), terms(2))
    assert 500 < len(caught.value.failures[0].encode("utf-8", "replace")) < SLOT_NBYTES


def test_an_error_is_read_under_limits_that_are_smaller_than_it() -> None:
    limits = Limits(payload_nbytes=64, num_frames=1, frame_nbytes=1)
    with pytest.raises(RankFailedError):
        judge([error(0, 2), data(1, 2)], block(2), terms(2, limits=limits))


def test_ranks_at_different_operations_are_named() -> None:
    slots = [data(0, 4), data(1, 4, op=2), error(2, 4), data(3, 4)]
    with pytest.raises(DesyncError, match=r"#5, ranks 0, 3 and rank 1 differ"):
        judge(slots, block(4), terms(4))


@pytest.mark.parametrize(
    ("strange", "text"),
    [
        (data(1, 2, seq=4), "rank 1 is at operation #4, this rank at #5"),
        (data(1, 2, seq=6), "rank 1 is at operation #6, this rank at #5"),
        (data(1, 2, group=99), "rank 1 belongs to another Gatherer"),
        (data(1, 3), "rank 1 belongs to another Gatherer"),
        (data(0, 2), "slot of rank 0 came in the place of rank 1"),
        (slot(1, bytes(32)), "slot of rank 1: .* never written"),
    ],
)
def test_a_stale_foreign_or_misplaced_slot_is_refused_with_its_rank(strange: memoryview, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        judge([data(0, 2), strange], block(2), terms(2))


def test_permuted_slots_are_refused() -> None:
    slots = [data(rank, 3) for rank in range(3)]
    with pytest.raises(DesyncError, match="in the place of"):
        judge([slots[1], slots[0], slots[2]], block(3), terms(3))


@pytest.mark.parametrize("seq", [0, 1])
@pytest.mark.plan(37)
def test_a_zeroed_slot_never_validates(seq: int) -> None:
    with pytest.raises(ProtocolError, match="slot of rank 1"):
        judge([data(0, 2, seq=seq), memoryview(bytes(SLOT_NBYTES))], block(2, seq=seq), terms(2))


@given(st.binary(max_size=200), st.integers(0, 2))
def test_noise_in_one_slot_is_a_protocol_error_that_names_it(noise: bytes, rank: int) -> None:
    slots = [data(rank, 3) for rank in range(3)]
    slots[rank] = memoryview(noise)
    with pytest.raises(ProtocolError, match=f"slot of rank {rank}"):
        judge(slots, block(3), terms(3))


HOSTILE = st.integers(0, 2**64 - 1)


@given(HOSTILE, st.integers(0, 2**32 - 1), st.sampled_from(Kind), st.booleans(), st.booleans())
@example(2**64 - 1, 2**32 - 1, Kind.DATA, False, False)
@example(2**64 - 1, 2**32 - 1, Kind.ERROR, True, False)
@example(1 << 36, 1 << 20, Kind.DATA, False, False)
@example(64 * (2**58 - 1), 0, Kind.DATA, False, True)
def test_hostile_lengths_are_judged_without_allocating(
    total_nbytes: int, num_frames: int, kind: Kind, elastic: bool, overflow_is_error: bool
) -> None:
    hostile = memoryview(bytearray(SLOT_NBYTES))
    hostile[:HEADER_NBYTES] = pack_header(total_nbytes, 0, num_frames, 0, block(2, kind))
    agreed = terms(2, elastic=elastic, overflow_is_error=overflow_is_error)

    def run() -> None:
        try:
            sizes = judge([hostile, data(1, 2)], block(2), agreed).nbytes_in_round_2
        except (ProtocolError, LimitError, RankFailedError, SlotOverflowError):
            return
        assert total_nbytes <= agreed.limits.payload_nbytes
        assert sizes is None or sizes == [total_nbytes, 0]

    assert peak_nbytes(run) < 1_000_000


def test_a_payload_above_the_limits_is_refused_whatever_the_overflow_policy() -> None:
    slots = [slot(0, block(2), claimed_nbytes=6400), data(1, 2)]
    for overflow_is_error in (False, True):
        agreed = terms(2, overflow_is_error=overflow_is_error, limits=Limits(payload_nbytes=6336))
        with pytest.raises((ProtocolError, LimitError), match="rank 0"):
            judge(slots, block(2), agreed)
