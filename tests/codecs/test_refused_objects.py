"""What a codec cannot encode fails on every rank, and leaves nothing of it anywhere."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from every_codec import EVERY, PICKLES, STRUCTURED
from gather_core import EncodeError, Gatherer, RemoteEncodeError
from gather_core.codec import Codec
from gather_core.registry import get_codec
from gather_transports.threads import ThreadsTransport
from thread_gatherers import caught, on_gatherers

SECRET = b"secret! " * 100
REFUSED: dict[str, Callable[[], object]] = {
    "lock": threading.Lock,
    "generator": lambda: (number for number in range(3)),
    "lock behind arrays": lambda: [np.zeros(5000), SECRET, threading.Lock()],
    "frame": lambda: __import__("sys")._getframe(),
}


@pytest.mark.plan(32)
@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_encoded_is_an_error_on_every_rank_and_the_group_goes_on(spec: str, what: str) -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(gatherer.all_gather, REFUSED[what]() if gatherer.rank == 1 else b"fine")
        assert isinstance(exc, RemoteEncodeError), repr(exc)
        assert list(exc.failures) == [1]
        assert isinstance(exc.__cause__, EncodeError if gatherer.rank == 1 else type(None))
        assert caught(gatherer.gather, REFUSED[what]() if gatherer.rank == 1 else b"fine", 0) is not None
        return gatherer.all_gather(b"next")

    assert on_gatherers(3, body, codec=spec) == [[b"next"] * 3] * 3


class Raises:
    def __reduce__(self) -> Any:
        raise ValueError("midway")


@pytest.mark.plan(33)
@pytest.mark.parametrize("spec", PICKLES)
def test_an_object_whose_reduction_raises_midway_does_not_get_into_the_slot(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    exchange = ThreadsTransport.all_gather_slots

    def watched(self: ThreadsTransport, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        views = exchange(self, nbytes, timeout_s=timeout_s)
        seen.extend(bytes(view) for view in views)
        return views

    def body(gatherer: Gatherer) -> object:
        exc = caught(gatherer.all_gather, [SECRET, np.frombuffer(SECRET * 10, "u1"), Raises()])
        assert "ValueError: midway" in str(exc)
        return gatherer.all_gather("next")

    monkeypatch.setattr(ThreadsTransport, "all_gather_slots", watched)
    assert on_gatherers(2, body, codec=spec) == [["next"] * 2] * 2
    assert len(seen) == 8
    assert not any(SECRET[:8] in view for view in seen)


class Changes:
    """Changes itself, and what holds it, while it is being pickled."""

    def __init__(self, holder: Any) -> None:
        self.holder, self.num_pickled = holder, 0

    def __reduce__(self) -> Any:
        self.num_pickled += 1
        if isinstance(self.holder, list):
            self.holder.append(self.num_pickled)
        else:
            self.holder[f"key {self.num_pickled}"] = 1
        return str, (f"pickled {self.num_pickled} times",)


@pytest.mark.plan(33)
@pytest.mark.parametrize("spec", PICKLES)
def test_an_object_that_changes_itself_while_it_is_pickled_arrives_as_it_then_was_or_is_refused(
    spec: str, roundtrip: Any
) -> None:
    codec: Codec = get_codec(spec)
    growing: list[Any] = ["first"]
    growing.append(Changes(growing))
    assert roundtrip(codec, growing) == ["first", "pickled 1 times", 1]
    mapping: dict[str, Any] = {}
    mapping["changes"] = Changes(mapping)
    mapping["last"] = 0
    with pytest.raises(RuntimeError, match="changed size"):
        codec.encode(mapping)
    assert roundtrip(codec, ["usable", np.arange(5000)])[0] == "usable"


@pytest.mark.plan(33)
@pytest.mark.parametrize("spec", STRUCTURED)
def test_nothing_of_a_refused_object_is_in_the_frames_of_the_next(spec: str) -> None:
    codec = get_codec(spec)
    expected = [bytes(memoryview(frame).cast("B")) for frame in codec.encode({"a": 1})]
    for make in REFUSED.values():
        with pytest.raises((EncodeError, TypeError)):
            codec.encode([SECRET, np.zeros(5000), make()])
        assert [bytes(memoryview(frame).cast("B")) for frame in codec.encode({"a": 1})] == expected
