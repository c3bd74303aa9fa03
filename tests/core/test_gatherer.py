"""The Gatherer over threads: fast, deterministic, up to many ranks; bad input of every kind."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gather_core import (
    AbortedError,
    ClosedError,
    DecodeError,
    DesyncError,
    EncodeError,
    Gatherer,
    GroupBrokenError,
    LimitError,
    Limits,
    RemoteCallError,
    RemoteEncodeError,
    SettingsError,
    SetupError,
    SlotOverflowError,
    TransportTimeoutError,
    UntrustedCodecError,
    interleave,
)
from gather_core.chunks import all_gather_by_slots, all_to_all_by_all_gather
from gather_core.codec import Codec, DecodeOptions, Frames
from gather_core.memory import aligned_buffer
from gather_core.slot import HEADER_NBYTES, payload_nbytes
from gather_transports.threads import ThreadGroup, ThreadRank


def on_ranks(world_size: int, body: Callable[[Gatherer], Any], **settings: Any) -> list[Any]:
    """Runs a body with a Gatherer on every rank; returns what each returned or raised."""

    def on_rank(member: ThreadRank) -> Any:
        with Gatherer(transport="threads", group=member, **{"timeout_s": 10, **settings}) as gatherer:
            return body(gatherer)

    return ThreadGroup(world_size).run(on_rank)


class BytesCodec(Codec):
    """One frame, the object itself; `wrong` chooses how it misbehaves."""

    name = "bytes"

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def encode(self, obj: object) -> Frames:
        if self.wrong == "no frames":
            return []
        if self.wrong == "interrupt":
            raise KeyboardInterrupt
        return [obj]  # type: ignore[list-item]

    def decode(self, frames: Any, options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if self.wrong == "decode":
            raise ValueError("not today")
        return bytes(frames[0])


@pytest.mark.parametrize("world_size", [1, 2, 7, 64])
def test_every_operation_on_any_number_of_ranks(world_size: int) -> None:
    def body(gatherer: Gatherer) -> Any:
        rank = gatherer.rank
        last = gatherer.world_size - 1
        return [
            gatherer.all_gather((rank, None)),
            gatherer.gather(rank, dst=last),
            gatherer.broadcast("x" if rank == last else None, src=last),
            gatherer.run(lambda: rank**2),
            len(gatherer.all_gather(np.zeros(50_000))[last]),
        ]

    ranks = list(range(world_size))
    for rank, outcome in enumerate(on_ranks(world_size, body)):
        gathered = ranks if rank == world_size - 1 else None
        assert outcome == [[(r, None) for r in ranks], gathered, "x", [r**2 for r in ranks], 50_000]


def test_without_a_process_group_there_is_one_rank_with_the_same_semantics() -> None:
    original = [1, np.arange(3)]
    with Gatherer() as gatherer:
        (copy,) = gatherer.all_gather(original)
        assert (gatherer.rank, gatherer.world_size, gatherer.transport.name) == (0, 1, "single")
        assert copy[0] == 1
        assert not np.shares_memory(copy[1], original[1])
        with pytest.raises(RemoteEncodeError) as caught:
            gatherer.all_gather(lambda: 0)
        assert isinstance(caught.value.__cause__, EncodeError)
        assert gatherer.gather(None) == [None]
    with pytest.raises(ClosedError):
        gatherer.all_gather(1)
    gatherer.close()


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_payload_around_the_slot_size(over: int) -> None:
    room = 2048 - HEADER_NBYTES
    payload = bytes(next(n for n in range(room, 0, -1) if payload_nbytes([bytes(n)]) <= room) + over)

    def body(gatherer: Gatherer) -> Any:
        return gatherer.all_gather(payload)

    outcomes = on_ranks(2, body, codec=BytesCodec(), slot_nbytes=2048, overflow="error")
    if over <= 0:
        assert outcomes == [[payload] * 2] * 2
    else:
        assert [type(outcome) for outcome in outcomes] == [SlotOverflowError] * 2
    assert on_ranks(2, body, codec=BytesCodec(), slot_nbytes=2048) == [[payload] * 2] * 2


def test_views_of_any_kind_are_flattened_or_refused() -> None:
    wide = memoryview(np.arange(4, dtype=np.int64).data)

    def body(gatherer: Gatherer) -> Any:
        empty = gatherer.all_gather(b"")
        cast = gatherer.all_gather(wide)
        read_only = gatherer.all_gather(wide.toreadonly())
        with pytest.raises(RemoteEncodeError, match=r"C-contiguous"):
            gatherer.all_gather(memoryview(b"abcd")[::2] if gatherer.rank else b"fine")
        return [empty, cast == read_only == [wide.tobytes()] * 2, gatherer.all_gather(b"next")]

    assert on_ranks(2, body, codec=BytesCodec()) == [[[b"", b""], True, [b"next"] * 2]] * 2


@pytest.mark.parametrize("bad", [{"dst": 2}, {"dst": -1}, {"dst": "0"}, {"dst": True}, {"tag": 3}, {"timeout_s": 0}])
def test_bad_arguments_of_one_rank_are_raised_on_all_and_the_group_goes_on(bad: dict[str, Any]) -> None:
    def body(gatherer: Gatherer) -> Any:
        with pytest.raises(RemoteEncodeError) as caught:
            gatherer.gather(0, **(bad if gatherer.rank else {}))
        assert isinstance(caught.value.__cause__, SettingsError) == (gatherer.rank == 1)
        return list(caught.value.failures), gatherer.all_gather(gatherer.rank)

    assert on_ranks(2, body) == [([1], [0, 1])] * 2


def test_an_exception_that_cannot_be_printed_still_reaches_everyone() -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def body(gatherer: Gatherer) -> Any:
        def fail() -> None:
            raise UnprintableError

        with pytest.raises(RemoteCallError, match="its message cannot be read"):
            gatherer.run(fail if gatherer.rank else int)
        return gatherer.all_gather(1)

    assert on_ranks(2, body) == [[1, 1]] * 2


def test_a_codec_without_frames_fails_every_rank() -> None:
    outcomes = on_ranks(2, lambda gatherer: gatherer.all_gather(b""), codec=BytesCodec("no frames"))
    assert all("returned no frames" in str(outcome) for outcome in outcomes)


def test_a_decode_error_is_local_and_names_the_rank() -> None:
    def body(gatherer: Gatherer) -> Any:
        with pytest.raises(DecodeError, match="object of rank 0: ValueError: not today"):
            gatherer.all_gather(b"x")
        with pytest.raises(DecodeError):
            gatherer.all_gather(b"the group goes on")
        return gatherer.stats.operations

    assert on_ranks(2, body, codec=BytesCodec("decode")) == [2, 2]


def test_an_object_above_the_limits_fails_every_rank() -> None:
    def body(gatherer: Gatherer) -> Any:
        with pytest.raises(RemoteEncodeError) as caught:
            gatherer.all_gather(bytes(5000 if gatherer.rank else 5))
        assert gatherer.rank == 0 or isinstance(caught.value.__cause__, LimitError)
        return gatherer.all_gather(1)

    assert on_ranks(2, body, limits=Limits(frame_nbytes=4000)) == [[1, 1]] * 2


def test_leaving_by_an_exception_aborts_the_others() -> None:
    def body(gatherer: Gatherer) -> Any:
        if gatherer.rank == 1:
            raise ValueError("boom")
        started = time.monotonic()
        with pytest.raises(AbortedError, match="rank 1 aborted: ValueError: boom") as caught:
            gatherer.all_gather(0)
        assert caught.value.rank == 1
        with pytest.raises(GroupBrokenError):
            gatherer.all_gather(0)
        return time.monotonic() - started

    first, second = on_ranks(2, body)
    assert first < 5
    assert isinstance(second, ValueError)


def test_an_interrupt_in_encode_aborts_the_others() -> None:
    def on_rank(member: ThreadRank) -> Any:
        codec = BytesCodec("interrupt" if member.rank else "")
        with Gatherer(codec, "threads", group=member, timeout_s=10) as gatherer:
            return gatherer.all_gather(b"")

    first, second = ThreadGroup(2).run(on_rank)
    assert isinstance(first, AbortedError)
    assert isinstance(second, KeyboardInterrupt)


def test_a_rank_that_never_comes_is_named_within_the_timeout() -> None:
    done = threading.Event()

    def body(gatherer: Gatherer) -> Any:
        if gatherer.rank == 1:
            done.wait(10)
            return None
        with pytest.raises(TransportTimeoutError, match="rank 1 never entered it and has called nothing yet") as caught:
            gatherer.all_gather(0, timeout_s=0.3, tag="eval")
        done.set()
        return caught.value.behind

    assert on_ranks(2, body) == [(1,), None]


def test_another_root_is_a_desync_everywhere_and_breaks_the_group() -> None:
    def body(gatherer: Gatherer) -> Any:
        with pytest.raises(DesyncError):
            gatherer.gather(0, dst=gatherer.rank)
        with pytest.raises(GroupBrokenError):
            gatherer.gather(0)

    assert on_ranks(3, body) == [None] * 3


def test_settings_that_differ_or_are_wrong_are_raised_on_every_rank() -> None:
    def on_rank(member: ThreadRank) -> None:
        Gatherer(transport="threads", group=member, slot_nbytes=5 if member.rank == 1 else 2048, timeout_s=5)

    outcomes = ThreadGroup(3).run(on_rank)
    assert [type(outcome) for outcome in outcomes] == [SetupError] * 3
    assert isinstance(outcomes[1].__cause__, SettingsError)  # type: ignore[union-attr]


def test_threads_of_one_rank_take_turns() -> None:
    with Gatherer() as gatherer:
        results: list[Any] = []
        threads = [threading.Thread(target=lambda n=n: results.append(gatherer.all_gather(n))) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(result[0] for result in results) == list(range(20))


@pytest.mark.parametrize("sizes", [[0, 0, 0], [1, 0, 5000], [2048, 2047, 2049], [10_000, 1, 64]])
def test_round_2_through_round_1(sizes: list[int]) -> None:
    def payload(src: int, dst: int, nbytes: int) -> bytes:
        return bytes((src * 31 + dst * 7 + i) % 256 for i in range(nbytes))

    def body(gatherer: Gatherer) -> Any:
        rank, transport = gatherer.rank, gatherer.transport
        parts = [memoryview(payload(rank, 0, sizes[rank]))]
        into = [aligned_buffer(nbytes) for nbytes in sizes]
        everything = [bytes(view) for view in all_gather_by_slots(transport, parts, sizes, into=into, timeout_s=5)]
        matrix = [[size + dst for dst in range(3)] for size in sizes]
        outgoing = [[memoryview(payload(rank, dst, matrix[rank][dst]))] for dst in range(3)]
        into = [aligned_buffer(row[rank]) for row in matrix]
        routed = all_to_all_by_all_gather(transport, outgoing, matrix, into=into, timeout_s=5)
        return everything, [bytes(view) for view in routed]

    for rank, outcome in enumerate(on_ranks(3, body, slot_nbytes=2048)):
        assert outcome[0] == [payload(src, 0, sizes[src]) for src in range(3)]
        assert outcome[1] == [payload(src, rank, sizes[src] + rank) for src in range(3)]


def test_interleave_undoes_a_distributed_sampler() -> None:
    assert interleave([[0, 3, 6], [1, 4, 7], [2, 5, 0]], total=8) == list(range(8))
    mixed: list[list[int | None]] = [[0, None], [1]]
    assert interleave(mixed) == [0, 1, None]


@pytest.mark.parametrize(("codec", "is_refused"), [("pickle", True), ("pickle+zstd", True), ("msgpack+zstd", False)])
def test_where_code_is_forbidden_only_codecs_that_build_data_are_accepted(
    monkeypatch: pytest.MonkeyPatch, codec: str, is_refused: bool
) -> None:
    monkeypatch.setenv("GATHER_FORBID_CODE", "1")
    outcomes = on_ranks(2, lambda gatherer: gatherer.all_gather(1), codec=codec)
    if not is_refused:
        assert outcomes == [[1, 1]] * 2
        return
    for outcome in outcomes:
        assert isinstance(outcome, SetupError)
        assert isinstance(outcome.__cause__, UntrustedCodecError)
        assert "GATHER_FORBID_CODE" in str(outcome)
