"""Objects for one rank each: scatter and all_to_all, in one payload or in an exchange of their own."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gather_core import (
    Frames,
    Gatherer,
    LimitError,
    Limits,
    ProtocolError,
    RemoteEncodeError,
    SlotOverflowError,
)
from gather_core.parcels import Manifest, announced, in_one_payload
from gather_core.slot import payload_nbytes
from gather_core.verdict import Terms
from gather_transports.threads import ThreadsTransport
from thread_gatherers import FixedSlots, FramesCodec, caught, on_gatherers

SLOT = 2048
TRANSPORTS = {"elastic": ThreadsTransport, "fixed": FixedSlots}


class WritableFramesCodec(FramesCodec):
    """Which also takes frames that it may keep."""

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        return [bytes(frame) for frame in frames]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 900, 20_000])
def test_every_rank_gets_what_is_meant_for_it(transport: str, world_size: int, length: int) -> None:
    def parcel(src: int, dst: int) -> np.ndarray[Any, Any]:
        return np.full(length + src, 100 * src + dst)

    def body(gatherer: Gatherer) -> None:
        rank = gatherer.rank
        outgoing = [parcel(rank, dst) for dst in range(world_size)]
        for src, array in enumerate(gatherer.all_to_all(outgoing)):
            np.testing.assert_array_equal(array, parcel(src, rank))
        for src in range(world_size):
            array = gatherer.scatter(outgoing if rank == src else None, src=src)
            np.testing.assert_array_equal(array, parcel(src, rank))

    on_gatherers(world_size, body, TRANSPORTS[transport], slot_nbytes=SLOT)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_uneven_and_empty_parcels_arrive(transport: str) -> None:
    def body(gatherer: Gatherer) -> object:
        mine = [[b"x" * (5000 * dst)] if gatherer.rank == 1 else [b""] for dst in range(3)]
        return gatherer.all_to_all(mine)

    outcomes = on_gatherers(3, body, TRANSPORTS[transport], slot_nbytes=SLOT, codec=WritableFramesCodec())
    assert outcomes == [[[b""], [b"x" * (5000 * rank)], [b""]] for rank in range(3)]


def test_bytes_that_do_not_fit_travel_only_to_the_rank_that_they_are_for() -> None:
    class Recorder(FixedSlots):
        matrices: list[Sequence[Sequence[int]]]

        def all_to_all_exact(self, *args: Any, **keywords: Any) -> Sequence[memoryview]:
            self.matrices = [*getattr(self, "matrices", ()), args[1]]
            return super().all_to_all_exact(*args, **keywords)

    def body(gatherer: Gatherer) -> object:
        mine = [[bytes(3000 * dst)] for dst in range(3)]
        gatherer.scatter(mine if gatherer.rank == 2 else None, src=2)
        return gatherer.transport.matrices  # type: ignore[attr-defined]

    row = [payload_nbytes([bytes(3000 * dst)]) for dst in range(3)]
    matrix = [[0, 0, 0], [0, 0, 0], row]
    assert on_gatherers(3, body, Recorder, slot_nbytes=SLOT, codec=WritableFramesCodec()) == [[matrix]] * 3


def test_results_alias_neither_the_callers_objects_nor_a_reused_buffer() -> None:
    def body(gatherer: Gatherer) -> object:
        mine = [np.full(50, gatherer.rank), np.full(50, gatherer.rank)]
        results = gatherer.all_to_all(mine)
        for array in mine:
            array[:] = -1
        for _ in range(3):
            gatherer.all_to_all([np.full(50, -2)] * 2)
        return [int(array.sum()) for array in results]

    for transport in TRANSPORTS.values():
        assert on_gatherers(2, body, transport) == [[0, 50]] * 2


@pytest.mark.parametrize("objs", [None, 5, [], [1], [1, 2, 3, 4]])
def test_another_number_of_objects_is_an_error_on_every_rank(objs: Any) -> None:
    def body(gatherer: Gatherer) -> object:
        bad = gatherer.rank == 1
        errors = [
            caught(lambda: gatherer.scatter(objs if bad else None, src=1)),
            caught(lambda: gatherer.all_to_all(objs if bad else [0, 0, 0])),
        ]
        assert all(type(error) is RemoteEncodeError and list(error.failures) == [1] for error in errors), errors
        return gatherer.all_to_all([gatherer.rank] * 3)

    assert on_gatherers(3, body) == [[0, 1, 2]] * 3


def test_what_is_no_sequence_is_refused_in_words() -> None:
    def body(gatherer: Gatherer) -> object:
        nothing: Any = None
        return caught(lambda: gatherer.scatter(nothing))

    expected = "an object for each rank is needed, as in a list, not NoneType"
    assert all(expected in str(text) for text in on_gatherers(2, body))


def test_what_others_pass_to_scatter_is_ignored() -> None:
    def body(gatherer: Gatherer) -> object:
        return gatherer.scatter([0, 1] if gatherer.rank == 0 else "ignored")

    assert on_gatherers(2, body) == [0, 1]


def test_with_overflow_as_error_the_whole_is_judged() -> None:
    def body(gatherer: Gatherer) -> object:
        error = caught(lambda: gatherer.all_to_all([b"x" * (300 * gatherer.rank)] * 3))
        assert isinstance(error, SlotOverflowError)
        return list(error.nbytes), gatherer.all_to_all([1, 2, 3])

    for transport in TRANSPORTS.values():
        outcomes = on_gatherers(3, body, transport, slot_nbytes=SLOT, overflow="error")
        assert outcomes == [([2], [rank + 1] * 3) for rank in range(3)]


def test_describe_names_slots_in_which_parcels_would_have_travelled_in_one_round() -> None:
    def body(gatherer: Gatherer) -> tuple[int, int, str]:
        mine = [bytes(3000), bytes(500 * gatherer.rank)]
        gatherer.all_to_all(mine)
        return gatherer.stats.second_rounds, gatherer.stats.largest_slot_nbytes, gatherer.describe()

    (rounds, nbytes, text), other = on_gatherers(2, body, FixedSlots, slot_nbytes=SLOT)
    assert (rounds, other[1]) == (1, nbytes)
    assert f"1 of 1 operations needed a second round, which slot_nbytes={nbytes} would have saved" in text
    assert 3500 < nbytes < 4500
    again = on_gatherers(2, body, FixedSlots, slot_nbytes=nbytes)
    assert [outcome[0] for outcome in again] == [0, 0]


def test_more_frames_than_a_payload_may_have_travel_by_themselves() -> None:
    def body(gatherer: Gatherer) -> object:
        return gatherer.all_to_all([[b"a"] * 3, [b"b"] * 3])

    outcomes = on_gatherers(2, body, codec=FramesCodec(), limits=Limits(num_frames=4))
    assert outcomes == [[[b"a"] * 3] * 2, [[b"b"] * 3] * 2]


def test_a_parcel_above_the_limits_is_an_error_on_every_rank() -> None:
    def body(gatherer: Gatherer) -> object:
        error = caught(lambda: gatherer.all_to_all([[bytes(5000)], [b""]] if gatherer.rank == 1 else [[b""]] * 2))
        assert isinstance(error, RemoteEncodeError)
        return list(error.failures)

    assert on_gatherers(2, body, codec=FramesCodec(), limits=Limits(payload_nbytes=4096)) == [[1]] * 2


PARCELS: list[Frames] = [[b"a"], [b"b" * 100, b""], [b"c"]]


TERMS = Terms(1, 3, SLOT, Limits(), SLOT, overflow_is_error=False)
ANNOUNCED, PARTS = announced(PARCELS, 0, bytes(32), TERMS)


def manifest(frames: Frames) -> Manifest:
    return Manifest([memoryview(frame) for frame in frames], bytes(32), 3, Limits())


def test_a_manifest_tells_parcels_apart() -> None:
    inside = manifest(in_one_payload(PARCELS))
    for rank, frames in enumerate(PARCELS):
        assert [bytes(frame) for frame in inside.frames_for(rank) or ()] == frames
    assert inside.nbytes_per_rank == [0, 0, 0]
    outside = manifest(ANNOUNCED)
    assert outside.nbytes_per_rank == [payload_nbytes(frames) for frames in PARCELS]
    assert [sum(map(len, parts)) for parts in PARTS] == outside.nbytes_per_rank
    assert [outside.frames_for(rank) for rank in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([], ProtocolError),
        ([b""], ProtocolError),
        (in_one_payload(PARCELS)[:-1], ProtocolError),
        ([*in_one_payload(PARCELS), b""], ProtocolError),
        (in_one_payload(PARCELS[:2]), ProtocolError),
        ([*ANNOUNCED, b""], ProtocolError),
        ([struct.pack("<9Q", 1, 64, 0, 1, 2**63, 0, 1, 64, 0)], LimitError),
        ([struct.pack("<9Q", 1, 64, 0, 1, 65, 0, 1, 64, 0)], ProtocolError),
        ([struct.pack("<9Q", 1, 64, 0, 2**40, 64, 0, 1, 64, 0)], LimitError),
        ([struct.pack("<9Q", 1, 0, 0, 2**64 - 1, 0, 0, 0, 0, 0)], ProtocolError),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(frames: Frames, error: type[Exception]) -> None:
    with pytest.raises(error):
        manifest(frames)
