"""What fails on some ranks fails on all of them, and the group goes on; or they are out of step, and it is broken."""

import gc
import pickle
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from gather_core import (
    AbortedError,
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
    SetupError,
    SlotOverflowError,
)
from gather_core.slot import HEADER_NBYTES, payload_nbytes
from rank_pool import RankPool
from thread_gatherers import FramesCodec, caught, on_gatherers

SLOT = 2048
Step = Callable[[Gatherer], object]


class UglyError(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Bomb:
    """Makes PlainPickle raise what it holds when it is encoded, or decoded."""

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


BAD_ARGUMENTS: dict[str, Callable[[Gatherer, bool], object]] = {
    "tag=5": lambda g, bad: g.all_gather(0, tag=5 if bad else "t"),  # type: ignore[arg-type]
    "timeout_s=0": lambda g, bad: g.all_gather(0, timeout_s=0 if bad else 5),
    "timeout_s=text": lambda g, bad: g.all_gather(0, timeout_s="5" if bad else 5),  # type: ignore[arg-type]
    "timeout_s=nan": lambda g, bad: g.all_gather(0, timeout_s=float("nan") if bad else 5),
    "timeout_s=huge": lambda g, bad: g.all_gather(0, timeout_s=10**400 if bad else 5),
    "dst=-1": lambda g, bad: g.gather(0, dst=-1 if bad else 0),
    "dst=3": lambda g, bad: g.gather(0, dst=3 if bad else 0),
    "dst=None": lambda g, bad: g.gather(0, dst=None if bad else 0),  # type: ignore[arg-type]
    "dst=True": lambda g, bad: g.gather(0, dst=True if bad else 0),
    "dst=1.0": lambda g, bad: g.gather(0, dst=1.0 if bad else 0),  # type: ignore[arg-type]
    "dst=text": lambda g, bad: g.gather(0, dst="0" if bad else 0),  # type: ignore[arg-type]
    "dst=list": lambda g, bad: g.gather(0, dst=[0] if bad else 0),  # type: ignore[arg-type]
    "dst=array": lambda g, bad: g.gather(0, dst=np.zeros(2, int) if bad else 0),  # type: ignore[arg-type]
    "src=3": lambda g, bad: g.broadcast(0, src=3 if bad else 0),
    "src=text": lambda g, bad: g.broadcast(0, src="0" if bad else 0),  # type: ignore[arg-type]
    "src=array": lambda g, bad: g.broadcast(0, src=np.zeros(2, int) if bad else 0),  # type: ignore[arg-type]
    "run tag": lambda g, bad: g.run(int, tag=None if bad else ""),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("failing", [{1}, {0, 1, 2}], ids=["one rank", "all ranks"])
@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_an_error_on_every_rank_and_the_group_goes_on(name: str, failing: set[int]) -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(lambda: BAD_ARGUMENTS[name](gatherer, gatherer.rank in failing))
        assert isinstance(exc, RemoteEncodeError), repr(exc)
        assert set(exc.failures) == failing
        assert type(exc.__cause__) is (SettingsError if gatherer.rank in failing else type(None))
        return gatherer.all_gather("next")

    assert on_gatherers(3, body, timeout_s=2) == [["next"] * 3] * 3


def test_bad_arguments_name_themselves_their_value_and_what_is_allowed() -> None:
    def body(gatherer: Gatherer) -> object:
        return str(caught(lambda: gatherer.gather(0, dst=7)).__cause__)

    assert on_gatherers(2, body) == ["dst must be a group rank from 0 to 1, not 7"] * 2


@pytest.mark.parametrize("failing", [{0}, {1, 2}, {0, 1, 2}], ids=str)
@pytest.mark.plan(32)
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

    assert on_gatherers(3, body, codec=PlainPickle()) == [["next"] * 3] * 3


@pytest.mark.parametrize(
    ("frames", "text"),
    [([], "returned no frames"), ([b"fine", memoryview(b"abcd")[::2]], "C-contiguous")],
    ids=["none", "strided"],
)
def test_what_a_codec_may_not_return_is_an_error_on_all(frames: list[bytes | memoryview], text: str) -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(gatherer.all_gather, frames if gatherer.rank == 1 else [b"fine"])
        assert isinstance(exc, RemoteEncodeError), repr(exc)
        assert list(exc.failures) == [1]
        assert text in exc.failures[1]
        return gatherer.all_gather([b"next"])

    assert on_gatherers(2, body, codec=FramesCodec()) == [[[b"next"]] * 2] * 2


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
        exc = caught(gatherer.all_gather, [b"x" * 200, *[b""] * 3] if gatherer.rank == 1 else [b"x"])
        assert isinstance(exc, RemoteEncodeError), repr(exc)
        assert list(exc.failures) == [1]
        assert what in exc.failures[1]
        assert isinstance(exc.__cause__, LimitError) == (gatherer.rank == 1)
        return gatherer.all_gather([b"next"])

    assert on_gatherers(2, body, codec=FramesCodec(), limits=limits) == [[[b"next"]] * 2] * 2


def test_small_limits_do_not_keep_an_error_from_reaching_the_others() -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(gatherer.all_gather, Bomb(ValueError("x" * 300)) if gatherer.rank == 1 else 0)
        assert isinstance(exc, RemoteEncodeError), repr(exc)
        return gatherer.all_gather("next")

    tight = Limits(payload_nbytes=128, num_frames=1, frame_nbytes=64)
    assert on_gatherers(2, body, codec=PlainPickle(), limits=tight) == [["next"] * 2] * 2


@pytest.mark.parametrize("more", [1, 100_000])
@pytest.mark.plan(34)
def test_with_overflow_error_what_does_not_fit_is_an_error_on_all_with_its_size(more: int) -> None:
    large = [b"p" * (SLOT - HEADER_NBYTES - 64 + more)]
    needed = HEADER_NBYTES + payload_nbytes(large)

    def body(gatherer: Gatherer) -> object:
        own = large if gatherer.rank == 1 else [b"s"]
        for call in (gatherer.all_gather, gatherer.gather, lambda obj: gatherer.broadcast(obj, src=1)):
            exc = caught(call, own)
            assert isinstance(exc, SlotOverflowError)
            assert (exc.nbytes, exc.slot_nbytes) == ({1: needed}, SLOT)
        return gatherer.all_gather([b"next"])

    outcomes = on_gatherers(3, body, codec=FramesCodec(), slot_nbytes=SLOT, overflow="error")
    assert outcomes == [[[b"next"]] * 3] * 3


@pytest.mark.parametrize("long", [False, True])
def test_run_raising_is_an_error_on_all_with_its_traceback(long: bool) -> None:
    def fails_here() -> None:
        raise ZeroDivisionError("x" * 10_000_000 if long else "mine")

    def body(gatherer: Gatherer) -> object:
        exc = caught(gatherer.run, fails_here if gatherer.rank == 1 else int)
        assert isinstance(exc, RemoteCallError)
        assert list(exc.failures) == [1]
        assert exc.failures[1].startswith("ZeroDivisionError: ")
        assert "in fails_here" in exc.failures[1]
        assert not long or "10000000 characters in all" in exc.failures[1]
        assert isinstance(exc.__cause__, ZeroDivisionError) == (gatherer.rank == 1)
        return gatherer.all_gather("next")

    assert on_gatherers(3, body, slot_nbytes=1024) == [["next"] * 3] * 3


@pytest.mark.parametrize("failing", [{1}, {0, 1}], ids=["one rank", "all ranks"])
def test_an_exception_that_cannot_be_printed_still_reaches_every_rank(failing: set[int]) -> None:
    def raise_ugly() -> None:
        raise UglyError

    def body(gatherer: Gatherer) -> object:
        fails = gatherer.rank in failing
        exc = caught(gatherer.run, raise_ugly if fails else int)
        assert isinstance(exc, RemoteCallError)
        assert set(exc.failures) == failing
        assert all(text.startswith("UglyError (its message cannot be read)") for text in exc.failures.values())
        for call in (
            lambda: gatherer.all_gather(Bomb(UglyError()) if fails else 0),
            lambda: gatherer.all_gather(0, tag=UglyError() if fails else "t"),  # type: ignore[arg-type]
        ):
            exc = caught(call)
            assert isinstance(exc, RemoteEncodeError)
            assert set(exc.failures) == failing
            assert (exc.__cause__ is not None) == fails
        return gatherer.all_gather("next")

    assert on_gatherers(2, body, codec=PlainPickle()) == [["next"] * 2] * 2


def test_a_decode_failure_is_local_names_the_rank_and_the_group_goes_on() -> None:
    def body(gatherer: Gatherer) -> object:
        own = Bomb(ValueError("rotten"), on_decode=True) if gatherer.rank == 2 else 0
        errors = [caught(gatherer.all_gather, own)]
        if gatherer.rank == 1:
            errors.append(caught(gatherer.gather, own, 1))
        else:
            assert gatherer.gather(own, 1) is None
        for exc in errors:
            assert isinstance(exc, DecodeError)
            assert "object of rank 2: ValueError: rotten" in str(exc)
            assert isinstance(exc.__cause__, ValueError)
        return gatherer.all_gather("next"), gatherer.stats.operations

    assert on_gatherers(3, body, codec=PlainPickle()) == [(["next"] * 3, 3)] * 3


FAILING_CALLS: dict[str, Callable[[Gatherer, Any], object]] = {
    "all_gather": lambda gatherer, obj: gatherer.all_gather(obj),
    "with confirm": lambda gatherer, obj: gatherer.all_gather(obj, confirm=True),
    "lazily": lambda gatherer, obj: gatherer.all_gather(obj, lazy=True)[0],
    "gather": lambda gatherer, obj: gatherer.gather(obj),
    "scatter": lambda gatherer, obj: gatherer.scatter([obj]),
    "iter_gather": lambda gatherer, obj: list(gatherer.iter_gather(iter([obj]))),
    "run": lambda gatherer, obj: gatherer.run(lambda: obj),
    "bad tag": lambda gatherer, obj: gatherer.all_gather(obj, tag=3),  # type: ignore[call-overload]
}


class FailsToEncode:
    """Unlike Bomb, not held by the exception itself."""

    def __reduce__(self) -> Any:
        raise ValueError("no")


class FailsToDecode:
    """Likewise."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.mark.parametrize("kind", [FailsToEncode, FailsToDecode])
@pytest.mark.parametrize("is_recording", [False, True], ids=["", "recording"])
@pytest.mark.parametrize("name", FAILING_CALLS)
def test_what_could_not_be_gathered_is_freed_with_the_error_without_a_collection(
    name: str, is_recording: bool, kind: type[FailsToEncode | FailsToDecode]
) -> None:
    with Gatherer(codec="pickle", transport="single") as gatherer:
        gatherer.stats.is_recording = is_recording
        obj = kind()
        alive = weakref.ref(obj)
        gc.disable()
        try:
            with suppress(GatherError):
                FAILING_CALLS[name](gatherer, obj)
            del obj
            assert alive() is None
        finally:
            gc.enable()


def test_a_call_from_inside_the_codec_is_an_error_and_not_a_deadlock() -> None:
    class Reentrant(PlainPickle):
        gatherer: Gatherer

        def encode(self, obj: object) -> Frames:
            if obj == "again":
                self.gatherer.all_gather("inner")
            return super().encode(obj)

    codec = Reentrant()

    def body(gatherer: Gatherer) -> object:
        codec.gatherer = gatherer
        exc = caught(gatherer.all_gather, "again")
        assert isinstance(exc, RemoteEncodeError)
        assert "called from inside another operation" in str(exc.__cause__)
        return gatherer.all_gather("next")

    assert on_gatherers(1, body, codec=codec) == [["next"]]


OUT_OF_STEP: dict[str, Step] = {
    "operation": lambda g: g.broadcast(0, src=0) if g.rank == 1 else g.all_gather(0),
    "tag": lambda g: g.all_gather(0, tag="b" if g.rank == 1 else "a"),
    "dst": lambda g: g.gather(0, dst=1 if g.rank == 1 else 0),
    "src": lambda g: g.broadcast(0, src=1 if g.rank == 1 else 0),
    "gather against all_gather": lambda g: g.gather(0) if g.rank == 1 else g.all_gather(0),
    "run against all_gather": lambda g: g.run(int) if g.rank == 1 else g.all_gather(0),
    "three ways": lambda g: g.gather(0, dst=g.rank),
}


@pytest.mark.parametrize("name", OUT_OF_STEP)
def test_ranks_at_different_operations_all_raise_and_the_group_is_broken(name: str) -> None:
    def body(gatherer: Gatherer) -> object:
        gatherer.all_gather("in step")
        exc = caught(OUT_OF_STEP[name], gatherer)
        later = caught(gatherer.all_gather, "later")
        assert isinstance(later, GroupBrokenError)
        assert isinstance(later.__cause__, DesyncError)
        assert isinstance(caught(gatherer.run, pytest.fail), GroupBrokenError)
        return exc

    sides = "rank 0 and rank 1 and rank 2" if name == "three ways" else "ranks 0, 2 and rank 1"
    for exc in on_gatherers(3, body):
        assert isinstance(exc, DesyncError), repr(exc)
        assert f"{sides} differ" in str(exc)


def test_nine_megabytes_of_error_text_leave_every_rank_its_store_and_the_reason(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[str, str, list[int]]:
        text = "x" * (9 << 20)
        left = construction = ""
        try:
            with Gatherer(transport="gloo", timeout_s=20) as gatherer:
                gatherer.all_gather(0)
                if rank == 1:
                    raise ValueError(text)
                gatherer.all_gather(1)
        except (AbortedError, ValueError) as exc:
            left = f"{type(exc).__name__}: {exc}"[:100]
        try:
            Gatherer(transport="gloo", timeout_s=20, overflow=text if rank == 1 else "error")  # type: ignore[arg-type]
        except SetupError as exc:
            construction = str(exc)
        with Gatherer(transport="gloo", timeout_s=20) as gatherer:
            return left, construction, gatherer.all_gather(rank)

    for rank, (left, construction, gathered) in enumerate(pool.values(3, body)):
        assert left.startswith("ValueError: xxx" if rank == 1 else "AbortedError: rank 1 aborted: ValueError: xxx")
        assert construction.startswith("rank 1 could not set up: SettingsError: overflow must be")
        assert "characters in all" in construction
        assert len(construction) < 5000
        assert gathered == [0, 1, 2]
