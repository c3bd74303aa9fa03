"""One codec used by many at a time: threads, calls inside calls, and children that were forked."""

import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from every_codec import EVERY, MSGPACK, PICKLES
from fresh_python import run_python
from gather_codecs import message_registry
from gather_codecs.message_registry import RegisteredTypes
from gather_codecs.messagepack import register_type
from gather_core.codec import Codec, DecodeOptions
from gather_core.registry import get_codec
from gather_core.testing.codec_frames import Landed, as_views

NUM_THREADS = 16
NUM_ROUNDS = 1000
WITHIN_S = 120
NUM_BYTES = [0, 1, 200, 1000, 3000, 70_000]


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def _messages(spec: str, number: int) -> list[Any]:
    """Of each size one that compresses and one that does not, and no thread's like another's."""
    noise = random.Random(number)
    contents = [
        make(nbytes) for nbytes in NUM_BYTES for make in (noise.randbytes, lambda nbytes: bytes([number]) * nbytes)
    ]
    if spec.startswith("raw"):
        return contents
    return [{"from": number, "ids": [number] * (len(content) % 50), "content": content} for content in contents]


def _rounds(codec: Codec, messages: list[Any], problems: list[str]) -> None:
    try:
        for turn in range(NUM_ROUNDS):
            message = messages[turn % len(messages)]
            back = codec.decode([memoryview(frame) for frame in codec.encode(message)])
            if back != message:
                problems.append(f"{message!r:.60} came back as {back!r:.60}")
                return
    except Exception as exc:
        problems.append(repr(exc))


@pytest.mark.plan(46)
@pytest.mark.usefixtures("eager_switches")
@pytest.mark.parametrize(
    "spec", ["pickle+zstd:min_nbytes=100", "msgpack+zstd:min_nbytes=100", "raw+zstd:min_nbytes=100"]
)
def test_sixteen_threads_share_a_codec_for_a_thousand_rounds_each(spec: str) -> None:
    codec, problems = get_codec(spec), list[str]()
    threads = [
        threading.Thread(target=_rounds, args=(codec, _messages(spec, number), problems), daemon=True)
        for number in range(NUM_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    assert not any(thread.is_alive() for thread in threads)
    assert problems == []


class Nests:
    """Has its codec encode something else while it is itself being encoded."""

    def __init__(self, codec: Codec, inside: Any) -> None:
        self.codec, self.inside = codec, inside

    def frames(self) -> list[bytes]:
        return [bytes(view) for view in as_views(self.codec.encode(self.inside))]

    def __reduce__(self) -> Any:
        return list, (self.frames(),)


def _decoded(codec: Codec, frames: list[bytes], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
    return codec.decode(Landed(frames).views, options)


@pytest.fixture
def nests_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_registry, "_types", RegisteredTypes())
    register_type("nests", Nests, Nests.frames, lambda frames: Nests(get_codec("pickle"), frames))


def _decoded_inside(codec: Codec, nested: Any) -> Any:
    """What was encoded inside: msgpack gives back a Nests that holds its frames, the pickles give the frames."""
    return _decoded(codec, nested.inside if isinstance(nested, Nests) else nested)


@pytest.mark.plan(47)
@pytest.mark.usefixtures("nests_is_registered")
@pytest.mark.parametrize("spec", [*PICKLES, *MSGPACK])
def test_an_encode_inside_an_encode_disturbs_neither(spec: str, roundtrip: Any, assert_same: Any) -> None:
    codec = get_codec(spec)
    inside = [np.arange(5000), {"deep": (1, torch.ones(3))}, b"x" * 200_000]
    before, after = [np.ones(6000), b"y" * 200_000, "before"], ["after", np.arange(3)]
    for _ in range(2):
        codec.encode("so that what it keeps for the next call is there")
        first, nested, last = roundtrip(codec, [before, Nests(codec, inside), after])
        assert_same([first, last], [before, after])
        assert_same(_decoded_inside(codec, nested), inside)
    codec.encode("again")
    one, innermost = _decoded_inside(codec, roundtrip(codec, Nests(codec, [1, Nests(codec, inside)])))
    assert one == 1
    assert_same(_decoded_inside(codec, innermost), inside)


def _decode_inside(codec: Codec, frames: list[bytes]) -> object:
    return _decoded(codec, frames)


class DecodesInside:
    """Has its codec decode something else, for the CPU, while it is itself being decoded."""

    def __init__(self, codec: Codec, frames: list[bytes]) -> None:
        self.codec, self.frames = codec, frames

    def __reduce__(self) -> Any:
        return _decode_inside, (self.codec, self.frames)


@pytest.mark.plan(47)
@pytest.mark.parametrize("spec", PICKLES)
def test_a_decode_inside_a_decode_leaves_the_tensors_after_it_where_they_belong(spec: str) -> None:
    codec = get_codec(spec)
    frames = [bytes(view) for view in as_views(codec.encode([torch.ones(5000)]))]
    outer = codec.encode([torch.ones(3), DecodesInside(codec, frames), torch.ones(5000)])
    options = DecodeOptions(tensor_device=lambda tensor: tensor.to("meta"))  # type: ignore[attr-defined]
    back: Any = codec.decode(Landed(as_views(outer)).views, options)
    assert [tensor.device.type for tensor in (back[0], back[1][0], back[2])] == ["meta", "cpu", "meta"]
    after: Any = _decoded(codec, frames)
    assert after[0].device.type == "cpu"


_FORK = """
import os, sys, threading
from gather_core.registry import get_codec

def check(codec, obj):
    assert codec.decode([memoryview(frame) for frame in codec.encode(obj)]) == obj

def works_in(codec, obj):
    errors = []
    def work():
        try:
            for _ in range(20):
                check(codec, obj)
        except BaseException as exc:
            errors.append(exc)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(codec, obj)
    return not errors

for spec in sys.argv[1:]:
    codec, obj = get_codec(spec), b"x" * 20_000 if spec.startswith("raw") else {"a": ["x" * 20_000, 1.5], "b": b"y"}
    assert works_in(codec, obj)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if works_in(codec, obj) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), works_in(codec, obj))
"""


@pytest.mark.plan(48)
def test_codecs_that_were_used_before_a_fork_work_in_the_child_and_in_the_parent() -> None:
    assert run_python(_FORK, *EVERY).splitlines() == ["0 True"] * len(EVERY)


def _round_trip(codec: Codec, obj: object) -> object:
    return _decoded(codec, [bytes(view) for view in as_views(codec.encode(obj))])


@pytest.mark.plan(48)
@pytest.mark.parametrize("spec", EVERY)
def test_a_thread_that_ends_takes_nothing_that_others_need(spec: str) -> None:
    codec, obj, results = get_codec(spec), b"x" * 20_000, list[object]()
    for _ in range(3):
        thread = threading.Thread(target=lambda: results.append(_round_trip(codec, obj)))
        thread.start()
        thread.join(WITHIN_S)
        results.append(_round_trip(codec, obj))
    assert results == [obj] * 6
