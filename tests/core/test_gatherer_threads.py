"""A Gatherer whose ranks are threads: every operation, and what fails on some ranks fails on all."""

import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gather_core import (
    Codec,
    DecodeError,
    DesyncError,
    EncodeError,
    Frames,
    Gatherer,
    GatherError,
    GroupBrokenError,
    LimitError,
    Limits,
    RemoteCallError,
    RemoteEncodeError,
    SettingsError,
    SlotOverflowError,
)
from gather_core.slot import HEADER_NBYTES, payload_nbytes
from gather_transports.threads import ThreadGroup, ThreadRank

SLOT = 2048


class UglyError(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Bomb:
    """Raises what it holds when it is encoded, or decoded."""

    def __init__(self, exc: BaseException, *, on_decode: bool = False) -> None:
        self.exc = exc
        self.on_decode = on_decode


class PlainPickle(Codec):
    """Pickle in one frame, which explodes on demand."""

    name = "plain-pickle-in-test"

    def encode(self, obj: object) -> Frames:
        if isinstance(obj, Bomb) and not obj.on_decode:
            raise obj.exc
        return [pickle.dumps(obj)]

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        obj = pickle.loads(frames[0])
        if isinstance(obj, Bomb):
            raise obj.exc
        return obj


class FramesCodec(Codec):
    """The object is the frames; decoding copies them."""

    name = "frames-in-test"

    def encode(self, obj: object) -> Frames:
        return obj  # type: ignore[return-value]

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        assert all(frame.readonly and frame.format == "B" and frame.contiguous for frame in frames)
        return [bytes(frame) for frame in frames]


Body = Callable[[Gatherer], Any]


def ranks(world_size: int, body: Body, **settings: Any) -> list[Any]:
    """Runs `body` with a Gatherer on every rank; raises what any of them raised."""
    arguments: dict[str, Any] = {"codec": PlainPickle(), "timeout_s": 10, "slot_nbytes": SLOT}
    arguments.update(settings)

    def run_rank(member: ThreadRank) -> list[Any]:
        with Gatherer(transport="threads", group=member, **arguments) as gatherer:
            return [body(gatherer)]

    returned = []
    for outcome in ThreadGroup(world_size).run(run_rank):
        if isinstance(outcome, BaseException):
            raise outcome
        returned += outcome
    return returned


def caught(call: Callable[..., object], *args: object) -> BaseException:
    """What a call raises."""
    try:
        result = call(*args)
    except BaseException as exc:
        return exc
    raise AssertionError(f"it returned {result!r}")


@pytest.mark.parametrize("world_size", range(1, 9))
def test_every_operation_at_every_world_size(world_size: int) -> None:
    everything = [{"rank": rank, "none": None} for rank in range(world_size)]

    def body(gatherer: Gatherer) -> object:
        rank, own = gatherer.rank, {"rank": gatherer.rank, "none": None}
        assert (gatherer.world_size, gatherer.transport.name) == (world_size, "threads")
        assert gatherer.all_gather(own, tag="first") == everything
        for root in range(world_size):
            assert gatherer.gather(own, dst=root) == (everything if rank == root else None)
            assert gatherer.broadcast(own if rank == root else "ignored", src=root) == everything[root]
        assert gatherer.run(divmod, 17, rank + 1) == [divmod(17, other + 1) for other in range(world_size)]
        return gatherer.stats.operations

    assert ranks(world_size, body) == [2 + 2 * world_size] * world_size


@pytest.mark.parametrize("obj", [None, {}, "", b"", (), [], False, 0, [None], "\ud800"])
def test_empty_objects_are_objects_like_any_other(obj: object) -> None:
    def body(gatherer: Gatherer) -> object:
        return [gatherer.all_gather(obj), gatherer.gather(obj, 1), gatherer.broadcast(obj), gatherer.run(lambda: obj)]

    both = [obj, obj]
    assert ranks(2, body) == [[both, both if rank == 1 else None, obj, both] for rank in range(2)]


@pytest.mark.parametrize("frames", [[b""], [b"", b""], [b"a", b"", b"c"], [b"x"] * 100])
def test_payloads_of_empty_and_many_frames(frames: list[bytes]) -> None:
    assert ranks(3, lambda gatherer: gatherer.all_gather(frames), codec=FramesCodec()) == [[frames] * 3] * 3


@pytest.mark.parametrize("overflow", ["second_round", "error"])
@pytest.mark.parametrize("more", [-1, 0, 1, 100_000])
def test_payloads_around_the_slot(overflow: str, more: int) -> None:
    full = [b"p" * (SLOT - HEADER_NBYTES - 64 + more)]
    needed = HEADER_NBYTES + payload_nbytes(full)
    assert (needed <= SLOT) == (more <= 0)

    def body(gatherer: Gatherer) -> object:
        own = full if gatherer.rank == 1 else [b"s"]
        if overflow == "error" and more > 0:
            for call in (gatherer.all_gather, gatherer.gather, lambda obj: gatherer.broadcast(obj, src=1)):
                exc = caught(call, own)
                assert isinstance(exc, SlotOverflowError)
                assert (exc.nbytes, exc.slot_nbytes) == ({1: needed}, SLOT)
        else:
            assert gatherer.all_gather(own) == [[b"s"], full, [b"s"]]
            assert gatherer.broadcast(own, src=1) == full
        return gatherer.all_gather([b"next"])

    assert ranks(3, body, overflow=overflow, codec=FramesCodec()) == [[[b"next"]] * 3] * 3


BAD_ARGUMENTS: dict[str, Callable[[Gatherer, bool], object]] = {
    "tag=5": lambda g, bad: g.all_gather(0, tag=5 if bad else "t"),  # type: ignore[arg-type]
    "tag=UglyError": lambda g, bad: g.all_gather(0, tag=UglyError() if bad else "t"),  # type: ignore[arg-type]
    "timeout_s=0": lambda g, bad: g.all_gather(0, timeout_s=0 if bad else 5),
    "timeout_s=text": lambda g, bad: g.all_gather(0, timeout_s="5" if bad else 5),  # type: ignore[arg-type]
    "timeout_s=nan": lambda g, bad: g.all_gather(0, timeout_s=float("nan") if bad else 5),
    "timeout_s=huge": lambda g, bad: g.all_gather(0, timeout_s=10**400 if bad else 5),
    "dst=-1": lambda g, bad: g.gather(0, dst=-1 if bad else 0),
    "dst=3": lambda g, bad: g.gather(0, dst=3 if bad else 0),
    "dst=None": lambda g, bad: g.gather(0, dst=None if bad else 0),  # type: ignore[arg-type]
    "dst=True": lambda g, bad: g.gather(0, dst=True if bad else 0),
    "dst=1.0": lambda g, bad: g.gather(0, dst=1.0 if bad else 0),  # type: ignore[arg-type]
    "dst=list": lambda g, bad: g.gather(0, dst=[0] if bad else 0),  # type: ignore[arg-type]
    "dst=array": lambda g, bad: g.gather(0, dst=_array() if bad else 0),  # type: ignore[arg-type]
    "src=3": lambda g, bad: g.broadcast(0, src=3 if bad else 0),
    "src=text": lambda g, bad: g.broadcast(0, src="0" if bad else 0),  # type: ignore[arg-type]
    "src=array": lambda g, bad: g.broadcast(0, src=_array() if bad else 0),  # type: ignore[arg-type]
    "run tag": lambda g, bad: g.run(int, tag=None if bad else ""),  # type: ignore[arg-type]
}


def _array() -> object:
    import numpy as np

    return np.zeros(2, int)


@pytest.mark.parametrize("failing", [{1}, {0, 1, 2}], ids=["one rank", "all ranks"])
@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_an_error_on_every_rank_and_the_group_goes_on(name: str, failing: set[int]) -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(lambda: BAD_ARGUMENTS[name](gatherer, gatherer.rank in failing))
        assert isinstance(exc, RemoteEncodeError), repr(exc)
        assert set(exc.failures) == failing
        assert (exc.__cause__ is not None) == (gatherer.rank in failing)
        return gatherer.all_gather("next")

    assert ranks(3, body, timeout_s=2) == [["next"] * 3] * 3


@pytest.mark.parametrize("failing", [{0}, {1, 2}, {0, 1, 2}], ids=str)
def test_encode_raising_on_some_ranks_is_an_error_on_all(failing: set[int]) -> None:
    def body(gatherer: Gatherer) -> object:
        obj: object = Bomb(KeyError("lost")) if gatherer.rank in failing else "fine"
        calls: list[Callable[[object], object]] = [
            gatherer.all_gather,
            lambda own: gatherer.gather(own, 2),
            lambda own: gatherer.run(lambda: own),
        ]
        for call in calls:
            exc = caught(call, obj)
            assert isinstance(exc, RemoteEncodeError)
            assert set(exc.failures) == failing
            assert all("KeyError" in text and "'lost'" in text for text in exc.failures.values())
            if gatherer.rank in failing:
                assert isinstance(exc.__cause__, EncodeError)
                assert isinstance(exc.__cause__.__cause__, KeyError)
        return gatherer.all_gather("next")

    assert ranks(3, body) == [["next"] * 3] * 3


def test_in_a_broadcast_only_the_object_of_the_root_is_encoded() -> None:
    def body(gatherer: Gatherer) -> object:
        return gatherer.broadcast("yes" if gatherer.rank == 1 else Bomb(ValueError("not mine")), src=1)

    assert ranks(3, body) == ["yes"] * 3


@pytest.mark.parametrize("long", [False, True])
def test_run_raising_is_an_error_on_all_with_its_traceback(long: bool) -> None:
    def fails_here() -> None:
        raise ZeroDivisionError("x" * 10_000_000 if long else "mine")

    def body(gatherer: Gatherer) -> object:
        exc = caught(lambda: gatherer.run(fails_here if gatherer.rank == 1 else int))
        assert isinstance(exc, RemoteCallError)
        assert list(exc.failures) == [1]
        assert exc.failures[1].startswith("ZeroDivisionError: ")
        assert long or "in fails_here" in exc.failures[1]
        assert isinstance(exc.__cause__, ZeroDivisionError) == (gatherer.rank == 1)
        return gatherer.all_gather("next")

    assert ranks(3, body, slot_nbytes=1024) == [["next"] * 3] * 3


def test_an_exception_that_cannot_be_printed_still_reaches_every_rank() -> None:
    def raise_ugly() -> None:
        raise UglyError

    def body(gatherer: Gatherer) -> object:
        exc = caught(lambda: gatherer.run(raise_ugly))
        assert isinstance(exc, RemoteCallError)
        assert all(text.startswith("UglyError (its message cannot be read)") for text in exc.failures.values())
        exc = caught(lambda: gatherer.all_gather(Bomb(UglyError()) if gatherer.rank == 0 else 1))
        assert isinstance(exc, RemoteEncodeError)
        return gatherer.all_gather("next")

    assert ranks(2, body) == [["next"] * 2] * 2


def test_a_decode_failure_is_local_and_the_group_goes_on() -> None:
    def body(gatherer: Gatherer) -> object:
        bomb = Bomb(ValueError("rotten"), on_decode=True)
        own: Any = bomb if gatherer.rank == 2 else 0
        if gatherer.rank == 1:
            exc = caught(gatherer.gather, own, 1)
            assert isinstance(exc, DecodeError)
            assert "object of rank 2: ValueError: rotten" in str(exc)
            assert isinstance(exc.__cause__, ValueError)
        else:
            assert gatherer.gather(own, 1) is None
        return gatherer.all_gather("next")

    assert ranks(3, body) == [["next"] * 3] * 3


@pytest.mark.parametrize("size", [10, 100_000])
def test_results_alias_neither_the_callers_object_nor_a_reused_buffer(size: int) -> None:
    def body(gatherer: Gatherer) -> object:
        own = [bytearray([gatherer.rank]) * size]
        results = [gatherer.all_gather(own) for _ in range(4)]
        own[0][:] = b"\xff" * size
        for _ in range(3):
            gatherer.all_gather([b"\xee" * size])
        return results

    assert ranks(2, body, codec=FramesCodec()) == [[[[b"\0" * size], [b"\1" * size]]] * 4] * 2


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(payload_nbytes=256), "payload_nbytes=256"),
        (Limits(num_frames=3), "num_frames=3"),
        (Limits(frame_nbytes=150), "frame_nbytes=150"),
    ],
    ids=["payload", "frames", "frame"],
)
def test_what_is_above_a_limit_is_an_error_on_all_and_the_group_goes_on(limits: Limits, what: str) -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(lambda: gatherer.all_gather([b"x" * 200, *[b""] * 3] if gatherer.rank == 1 else [b"x"]))
        assert isinstance(exc, RemoteEncodeError), repr(exc)
        assert list(exc.failures) == [1]
        assert what in exc.failures[1]
        assert isinstance(exc.__cause__, LimitError) == (gatherer.rank == 1)
        return gatherer.all_gather([b"next"])

    assert ranks(2, body, codec=FramesCodec(), limits=limits) == [[[b"next"]] * 2] * 2


def test_small_limits_do_not_keep_an_error_from_reaching_the_others() -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(lambda: gatherer.all_gather(Bomb(ValueError("x" * 300)) if gatherer.rank == 1 else 0))
        assert isinstance(exc, RemoteEncodeError), repr(exc)
        return gatherer.all_gather("next")

    tight = Limits(payload_nbytes=128, num_frames=1, frame_nbytes=64)
    assert ranks(2, body, limits=tight) == [["next"] * 2] * 2


def test_a_call_from_inside_the_codec_is_an_error_and_not_a_deadlock() -> None:
    class Reentrant(PlainPickle):
        gatherer: Any

        def encode(self, obj: object) -> Frames:
            if obj == "again":
                self.gatherer.all_gather("inner")
            return super().encode(obj)

    codec = Reentrant()

    def body(gatherer: Gatherer) -> object:
        codec.gatherer = gatherer
        exc = caught(lambda: gatherer.all_gather("again"))
        assert isinstance(exc, RemoteEncodeError)
        assert isinstance(exc.__cause__, GatherError)
        return gatherer.all_gather("next")

    assert ranks(1, body, codec=codec) == [["next"]]


def test_calls_from_several_threads_of_one_rank_are_serialised() -> None:
    def body(gatherer: Gatherer) -> object:
        results: list[list[tuple[int, int, int]]] = []

        def work(worker: int) -> None:
            for number in range(20):
                results.append(gatherer.all_gather((gatherer.rank, worker, number)))

        workers = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        return results

    outcomes = ranks(2, body)
    assert sorted(outcomes[0]) == sorted(outcomes[1])
    for rank in range(2):
        sent = sorted(result[rank] for result in outcomes[0])
        assert sent == [(rank, worker, number) for worker in range(3) for number in range(20)]


BROKEN_STEPS: dict[str, Body] = {
    "operation": lambda g: g.broadcast(0, src=0) if g.rank == 1 else g.all_gather(0),
    "tag": lambda g: g.all_gather(0, tag="b" if g.rank == 1 else "a"),
    "dst": lambda g: g.gather(0, dst=1 if g.rank == 1 else 0),
    "src": lambda g: g.broadcast(0, src=1 if g.rank == 1 else 0),
    "gather against all_gather": lambda g: g.gather(0) if g.rank == 1 else g.all_gather(0),
    "run against all_gather": lambda g: g.run(int) if g.rank == 1 else g.all_gather(0),
}


@pytest.mark.parametrize("name", BROKEN_STEPS)
def test_ranks_at_different_operations_all_raise_and_the_group_is_broken(name: str) -> None:
    def body(gatherer: Gatherer) -> object:
        gatherer.all_gather("in step")
        exc = caught(lambda: BROKEN_STEPS[name](gatherer))
        later = caught(lambda: gatherer.all_gather("later"))
        assert isinstance(later, GroupBrokenError)
        assert isinstance(later.__cause__, DesyncError)
        assert isinstance(caught(lambda: gatherer.run(pytest.fail)), GroupBrokenError)
        return exc

    for exc in ranks(3, body):
        assert isinstance(exc, DesyncError), repr(exc)
        assert "ranks 0, 2 and rank 1 differ" in str(exc)


def test_bad_arguments_name_themselves_their_value_and_what_is_allowed() -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(lambda: gatherer.gather(0, dst=7))
        assert isinstance(exc.__cause__, SettingsError)
        return str(exc.__cause__)

    assert ranks(2, body) == ["dst must be a group rank from 0 to 1, not 7"] * 2
