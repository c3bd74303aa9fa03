"""Objects that are decoded when they are looked at, and decoding that all ranks confirm."""

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gather_core import Codec, DecodeError, DesyncError, Frames, Gatherer, RemoteDecodeError
from gather_transports.threads import ThreadsTransport
from rank_pool import RankPool
from thread_gatherers import FixedSlots, caught, on_gatherers


class Picky(Codec):
    """Text, of which some cannot be decoded on some ranks; remembers what it has decoded."""

    name = "picky-in-test"

    def __init__(self) -> None:
        self.decoded: list[str] = []

    def encode(self, obj: object) -> Frames:
        return [str(obj).encode()]

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        text = bytes(frames[0]).decode()
        self.decoded.append(text)
        if "bad" in text:
            raise ValueError(f"{text} cannot be decoded")
        return text


class SlowInItsProcess(Picky):
    """Takes a second to decode where it was made, and none in children of that process."""

    name = "slow-in-test"

    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()
        self.decoding = threading.Event()

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        if os.getpid() == self.pid:
            self.decoding.set()
            threading.Event().wait(1)
        return super().decode(frames)


def test_only_what_is_looked_at_is_decoded_and_once() -> None:
    codec = Picky()
    with Gatherer(codec) as gatherer:
        objects = gatherer.all_gather("text", lazy=True)
        assert (len(objects), codec.decoded, repr(objects)) == (1, [], "<LazyObjects of 1 ranks, 0 decoded>")
        assert objects[0] == objects[-1] == "text"
        assert (codec.decoded, repr(objects)) == (["text"], "<LazyObjects of 1 ranks, 1 decoded>")
        with pytest.raises(IndexError):
            objects[1]


@pytest.mark.parametrize("make_transport", [ThreadsTransport, FixedSlots])
@pytest.mark.parametrize("length", [3, 50_000])
def test_lazy_objects_own_their_memory_and_outlive_the_gatherer(
    make_transport: type[ThreadsTransport], length: int
) -> None:
    def body(gatherer: Gatherer) -> Any:
        lazy = gatherer.all_gather(np.full(length, gatherer.rank), lazy=True)
        for _ in range(3):
            gatherer.all_gather(np.full(length, -1))
        return lazy

    for objects in on_gatherers(3, body, make_transport, slot_nbytes=2048):
        assert [int(array.sum()) for array in objects] == [0, length, 2 * length]
        assert [int(array[0]) for array in objects[1:]] == [1, 2]
        objects[0][:] = 7
        assert int(objects[0][0]) == 7


def test_a_child_that_is_forked_while_a_thread_decodes_can_decode(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        codec = SlowInItsProcess()
        with Gatherer(codec, "single") as gatherer:
            objects = gatherer.all_gather("text", lazy=True)
        thread = threading.Thread(target=lambda: objects[0])
        thread.start()
        codec.decoding.wait()
        child = os.fork()
        if not child:
            signal.alarm(10)  # ends it, where it waits for the thread that it does not have
            os._exit(0 if objects[0] == "text" else 1)
        thread.join()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert pool.values(1, body) == [0]


def test_each_rank_chooses_whether_it_is_lazy() -> None:
    def body(gatherer: Gatherer) -> object:
        if gatherer.rank:
            return list(gatherer.all_gather(gatherer.rank, lazy=True))
        return gatherer.all_gather(gatherer.rank)

    assert on_gatherers(2, body) == [[0, 1]] * 2


def test_what_cannot_be_decoded_raises_on_every_look_and_the_rest_is_there() -> None:
    def body(gatherer: Gatherer) -> object:
        objects = gatherer.all_gather("bad" if gatherer.rank else "good", lazy=True)
        for _ in range(2):
            with pytest.raises(DecodeError, match="rank 1"):
                objects[1]
        return objects[0], gatherer.all_gather("next")

    assert on_gatherers(2, body, codec=Picky()) == [("good", ["next"] * 2)] * 2


OPERATIONS: dict[str, Any] = {
    "all_gather": lambda g, confirm: g.all_gather("text", confirm=confirm),
    "gather": lambda g, confirm: g.gather("text", dst=1, confirm=confirm),
    "broadcast": lambda g, confirm: g.broadcast("text", src=0, confirm=confirm),
    "scatter": lambda g, confirm: g.scatter(["text"] * 3, src=0, confirm=confirm),
    "all_to_all": lambda g, confirm: g.all_to_all(["text"] * 3, confirm=confirm),
}


class FailsOnDemand(Picky):
    """Decodes nothing in threads that ask for it: as a rank that lacks a class of the others."""

    here = threading.local()

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        if getattr(self.here, "fails", False):
            raise ValueError("not here")
        return super().decode(frames, options)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_confirmed_decode_error_of_one_rank_is_raised_by_all(operation: str) -> None:
    call = OPERATIONS[operation]

    def body(gatherer: Gatherer) -> object:
        FailsOnDemand.here.fails = gatherer.rank == 1
        error = caught(call, gatherer, True)
        FailsOnDemand.here.fails = False
        assert isinstance(error, RemoteDecodeError), error
        assert isinstance(error.__cause__, DecodeError) == (gatherer.rank == 1)
        assert "ValueError: not here" in str(error)
        return list(error.failures), call(gatherer, True) == call(gatherer, False), gatherer.all_gather("next")

    assert on_gatherers(3, body, codec=FailsOnDemand()) == [([1], True, ["next"] * 3)] * 3


def test_an_unconfirmed_decode_error_is_of_one_rank_alone() -> None:
    def body(gatherer: Gatherer) -> object:
        FailsOnDemand.here.fails = gatherer.rank == 1
        try:
            return gatherer.all_gather("text")
        except DecodeError:
            return "failed"
        finally:
            FailsOnDemand.here.fails = False

    assert on_gatherers(2, body, codec=FailsOnDemand()) == [["text"] * 2, "failed"]


def test_ranks_that_differ_in_confirm_are_told_so() -> None:
    def body(gatherer: Gatherer) -> object:
        return type(caught(lambda: gatherer.all_gather("text", confirm=gatherer.rank == 0)))

    assert on_gatherers(2, body) == [DesyncError] * 2
