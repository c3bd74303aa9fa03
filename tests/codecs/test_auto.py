"""AutoCodec: pickle where pickle can, cloudpickle where only that can, and both reasons where neither can."""

import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest

from fresh_python import run_python
from gather_codecs.auto import AutoCodec
from gather_codecs.cloudpickle5 import CloudpickleCodec
from gather_codecs.pickle5 import PickleCodec
from gather_core.errors import EncodeError


@pytest.fixture
def codec() -> AutoCodec:
    return AutoCodec()


class Counting:
    """Counts how often it is pickled, and fails with the error given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_pickled = 0

    def __reduce__(self) -> Any:
        self.num_pickled += 1
        if self.error:
            raise self.error
        return int, (5,)


def test_what_pickle_can_encode_is_encoded_once_and_as_pickle_does(codec: AutoCodec) -> None:
    counting = Counting()
    frames = [bytes(frame) for frame in codec.encode([counting, np.zeros(5000)])]
    assert counting.num_pickled == 1
    assert frames == [bytes(frame) for frame in PickleCodec().encode([counting, np.zeros(5000)])]


def test_what_only_cloudpickle_can_encode_comes_back(codec: AutoCodec, roundtrip: Any) -> None:
    factor = 3

    class Local:
        value = factor

    function, local = roundtrip(codec, [lambda x: x * factor, Local()])
    assert (function(5), local.value) == (15, 3)


def test_frames_that_pickle_had_collected_before_it_failed_are_not_sent(
    codec: AutoCodec, roundtrip: Any, assert_same: Any
) -> None:
    arrays = [np.arange(5000), np.arange(6000.0)]
    assert len(codec.encode([*arrays, lambda: 0])) == 3
    assert_same(roundtrip(codec, [*arrays, lambda: 0])[:2], arrays)
    assert len(codec.encode([1, 2])) == 1


def test_an_object_that_neither_can_encode_says_why_for_both(codec: AutoCodec) -> None:
    with pytest.raises(EncodeError, match=r"list: pickle: .*lambda.*; cloudpickle: TypeError: .*lock") as caught:
        codec.encode([lambda: 0, threading.Lock()])
    assert isinstance(caught.value.__cause__, TypeError)
    assert caught.value.__cause__.__context__ is not None


@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("mine"), MemoryError("mine")], ids=repr)
def test_an_object_that_fails_by_itself_is_asked_once_and_its_error_kept(codec: AutoCodec, error: Exception) -> None:
    obj = Counting(error)
    with pytest.raises(type(error), match="mine"):
        codec.encode([obj])
    assert obj.num_pickled == 1


def test_an_object_that_fails_as_pickle_does_is_asked_twice(codec: AutoCodec) -> None:
    obj = Counting(TypeError("mine"))
    with pytest.raises(EncodeError, match="pickle: TypeError: mine; cloudpickle: TypeError: mine"):
        codec.encode([obj])
    assert obj.num_pickled == 2


def test_an_object_that_is_nested_too_deep_fails_once_and_leaves_the_codec_usable(
    codec: AutoCodec, roundtrip: Any
) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        codec.encode(deep)
    while deep:  # else freeing it recurses
        deep = deep[0]
    assert roundtrip(codec, [1, lambda: 2])[1]() == 2


def test_ranks_with_other_versions_of_python_do_not_match(codec: AutoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    here = codec.fingerprint()
    assert here != CloudpickleCodec().fingerprint()
    monkeypatch.setattr(sys, "version_info", type("version_info", (), {"major": 3, "minor": 99}))
    assert codec.fingerprint() != here


def test_cloudpickle_is_not_imported_before_it_is_needed() -> None:
    script = (
        "import sys; from gather_codecs.auto import AutoCodec; c = AutoCodec(); c.fingerprint(); c.encode([1])\n"
        "print('cloudpickle' in sys.modules); c.encode(lambda: 0); print('cloudpickle' in sys.modules)"
    )
    assert run_python(script).split() == ["False", "True"]


def test_what_it_writes_is_a_pickle(codec: AutoCodec) -> None:
    assert pickle.loads(codec.encode(lambda: 7)[0])() == 7
