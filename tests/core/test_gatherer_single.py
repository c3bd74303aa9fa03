"""A Gatherer of one rank: the same operations without a group; closing, forking, forgetting."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gather_core import (
    ClosedError,
    Codec,
    DecodeError,
    EncodeError,
    Frames,
    Gatherer,
    GroupBrokenError,
    RemoteCallError,
    RemoteEncodeError,
    SetupError,
    SlotOverflowError,
)


class TextCodec(Codec):
    """Strings as UTF-8."""

    name = "text-in-test"

    def encode(self, obj: object) -> Frames:
        assert isinstance(obj, str), "not a str"
        return [obj.encode()]

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        return bytes(frames[0]).decode()


OPERATIONS: dict[str, Callable[[Gatherer], object]] = {
    "all_gather": lambda gatherer: gatherer.all_gather("x"),
    "gather": lambda gatherer: gatherer.gather("x"),
    "broadcast": lambda gatherer: gatherer.broadcast("x"),
    "run": lambda gatherer: gatherer.run(str),
}


@pytest.mark.parametrize("transport", ["auto", "single"])
@pytest.mark.parametrize("obj", ["", "x", "x" * 100_000])
def test_every_operation_works_alone(transport: str, obj: str) -> None:
    with Gatherer(TextCodec(), transport) as gatherer:
        assert (gatherer.rank, gatherer.world_size, gatherer.transport.name) == (0, 1, "single")
        assert gatherer.all_gather(obj) == [obj]
        assert gatherer.gather(obj) == [obj]
        assert gatherer.broadcast(obj) == obj
        assert gatherer.run(str, obj) == [obj]
        assert gatherer.stats.operations == 4
        assert "rank 0 of 1, codec text-in-test, transport single" in gatherer.describe()


def test_the_default_codec_takes_any_object_and_returns_a_copy() -> None:
    obj = {"a": [1, (2, None)], "b": bytearray(b"x" * 100_000)}
    with Gatherer() as gatherer:
        (result,) = gatherer.all_gather(obj)
        assert result == obj
        assert result is not obj
        assert result["a"] is not obj["a"]
        obj["b"][:] = bytes(100_000)  # type: ignore[index]
        assert result["b"] == b"x" * 100_000
        array = np.arange(3)
        (copy,) = gatherer.all_gather(array)
        assert np.array_equal(copy, array)
        assert not np.shares_memory(copy, array)


def test_failures_are_the_same_as_with_many_ranks() -> None:
    with Gatherer(TextCodec(), overflow="error", slot_nbytes=1024) as gatherer:
        for call, error in (
            (lambda: gatherer.all_gather(5), RemoteEncodeError),
            (lambda: gatherer.gather("x", dst=1), RemoteEncodeError),
            (lambda: gatherer.run(divmod, 1, 0), RemoteCallError),
            (lambda: gatherer.all_gather("x" * 2000), SlotOverflowError),
        ):
            with pytest.raises(error):
                call()
        assert gatherer.all_gather("next") == ["next"]


def test_what_the_default_codec_cannot_encode_is_an_error_with_its_cause() -> None:
    with Gatherer() as gatherer, pytest.raises(RemoteEncodeError) as caught:
        gatherer.all_gather(lambda: 0)
    assert isinstance(caught.value.__cause__, EncodeError)


def test_a_decode_error_leaves_the_gatherer_usable() -> None:
    class Garbled(TextCodec):
        def encode(self, obj: object) -> Frames:
            return [b"\xff"] if obj == "garble" else super().encode(obj)

    with Gatherer(Garbled()) as gatherer:
        with pytest.raises(DecodeError, match="rank 0: UnicodeDecodeError"):
            gatherer.all_gather("garble")
        assert gatherer.all_gather("next") == ["next"]


def test_a_bad_setting_is_a_setup_error_with_its_cause() -> None:
    with pytest.raises(SetupError, match="slot_nbytes must be") as caught:
        Gatherer(slot_nbytes=5)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("group", [5, "world"])
def test_what_is_no_group_is_an_error(group: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Gatherer(TextCodec(), "single", group=group)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_closed_gatherer_says_so(name: str) -> None:
    with Gatherer(TextCodec()) as gatherer:
        assert OPERATIONS[name](gatherer)
    gatherer.close()
    gatherer.close()
    gatherer.abort()
    with pytest.raises(ClosedError, match="is closed"):
        OPERATIONS[name](gatherer)


def test_a_close_that_is_interrupted_has_closed_and_can_be_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    gatherer = Gatherer(TextCodec())
    membership: Any = gatherer._membership
    with monkeypatch.context() as patch:
        patch.setattr(membership, "_finalizer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gatherer.close()
    with pytest.raises(ClosedError):
        gatherer.all_gather("x")
    assert membership._finalizer.alive
    gatherer.close()
    assert not membership._finalizer.alive


def test_run_does_not_call_the_function_of_a_closed_gatherer() -> None:
    gatherer = Gatherer(TextCodec())
    gatherer.close()
    with pytest.raises(ClosedError):
        gatherer.run(pytest.fail, "called")


def test_after_an_abort_the_group_is_broken_with_its_cause() -> None:
    with Gatherer(TextCodec()) as gatherer:
        cause = OSError("disk full")
        gatherer.abort(cause)
        with pytest.raises(GroupBrokenError, match="OSError: disk full") as caught:
            gatherer.all_gather("x")
        assert caught.value.__cause__ is cause


def test_an_abort_may_be_given_in_words() -> None:
    with Gatherer(TextCodec()) as gatherer:
        gatherer.abort("the loss is NaN")
        with pytest.raises(GroupBrokenError, match="the loss is NaN"):
            gatherer.all_gather("x")


def test_a_dropped_gatherer_is_closed() -> None:
    gatherer = Gatherer(TextCodec(), "single")
    transport, dead = gatherer.transport, weakref.ref(gatherer)
    gatherer.all_gather("x")
    assert len(transport.slot(64)) == 64
    del gatherer
    gc.collect()
    assert dead() is None
    assert len(transport._slot) == 0  # type: ignore[attr-defined]


def test_large_slots_are_given_back() -> None:
    with Gatherer(TextCodec(), "single") as gatherer:
        gatherer.all_gather("x" * 10_000_000)
        assert len(gatherer.transport._slot) == gatherer.slot_nbytes  # type: ignore[attr-defined]


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_gatherer_can_be_neither_pickled_nor_copied(take: Callable[[Gatherer], object]) -> None:
    with Gatherer() as gatherer, pytest.raises(TypeError, match="a Gatherer is one process's place in a group"):
        take(gatherer)


def test_a_gatherer_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    with Gatherer(TextCodec()) as gatherer:
        gatherer.all_gather("x")
    assert set(threading.enumerate()) == before


FORK = """
import os, sys, threading
from gather_core import ClosedError, Gatherer

def child_raises(gatherer):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for call in (lambda: gatherer.all_gather(1), lambda: gatherer.run(int)):
                try:
                    call()
                except ClosedError as exc:
                    code = 0 if "parent process" in str(exc) else 2
            gatherer.abort()
            gatherer.close()
        finally:
            os._exit(code)
    for _ in range(500):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "the child hangs"
"""


def run_script(script: str) -> str:
    text = FORK + textwrap.dedent(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", text]  # from Python 3.12 on: fork
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    return done.stdout.strip() + done.stderr[-2000:]


def test_a_forked_child_cannot_use_its_parents_gatherer_and_the_parent_can() -> None:
    script = """
        gatherer = Gatherer(transport="single")
        print(child_raises(gatherer), gatherer.all_gather("parent"))
    """
    assert run_script(script) == "0 ['parent']"


def test_a_child_forked_in_the_middle_of_an_operation_does_not_hang() -> None:
    script = """
        inside, go_on = threading.Event(), threading.Event()

        class Slow:
            def __reduce__(self):
                inside.set()
                go_on.wait(20)
                return (str, ("slow",))

        gatherer = Gatherer(transport="single")
        worker = threading.Thread(target=lambda: gatherer.all_gather(Slow()))
        worker.start()
        inside.wait(20)
        outcome = child_raises(gatherer)
        go_on.set()
        worker.join()
        print(outcome, gatherer.all_gather("parent"))
    """
    assert run_script(script) == "0 ['parent']"


def test_a_forked_child_cannot_go_on_with_its_parents_stream_and_the_parent_can() -> None:
    script = """
        gatherer = Gatherer(transport="single")
        stream = gatherer.iter_gather([1, 2, 3])
        first = next(stream)
        if (child := os.fork()) == 0:
            try:
                next(stream)
            except ClosedError:
                os._exit(7)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), first, *stream)
    """
    assert run_script(script) == "7 (0, 1) (0, 2) (0, 3)"


def test_a_gatherer_that_nobody_closed_does_not_disturb_the_end_of_the_process() -> None:
    assert run_script("print(Gatherer().all_gather(1))") == "[1]"


def test_a_job_that_forgot_to_initialise_its_process_group_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(RuntimeWarning, match="torch.distributed is not initialised"):
        Gatherer().close()
