"""AutoCodec: each part as pickle sends it where pickle can, and by value, as cloudpickle does, where it cannot."""

import abc
import dataclasses
import enum
import io
import logging
import pickle
import sys
import threading
import types
from pathlib import Path
from typing import Any, AnyStr, Generic, TypeVar

import cloudpickle
import numpy as np
import pytest

from fresh_python import run_python
from gather_codecs.auto import _REDUCERS, AutoCodec
from gather_codecs.cloudpickle5 import CloudpickleCodec
from gather_codecs.pickle5 import PickleCodec


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


def test_what_is_used_up_when_it_is_pickled_arrives_whole_beside_what_only_cloudpickle_can_encode(
    codec: AutoCodec, roundtrip: Any
) -> None:
    class Items:
        def __init__(self) -> None:
            self.items = iter([1, 2])

        def __reduce__(self) -> Any:
            return list, (), None, self.items

    counting = Counting()
    items, number, function = roundtrip(codec, [Items(), counting, lambda: 3])
    assert (items, number, function()) == ([1, 2], 5, 3)
    assert counting.num_pickled == 1


def test_a_class_that_pickle_can_name_stays_that_class_beside_one_that_it_cannot(
    codec: AutoCodec, roundtrip: Any
) -> None:
    def make() -> Counting:
        return Counting()

    kind, function = roundtrip(codec, [Counting, make])
    assert kind is Counting
    assert type(function()) is Counting


@pytest.mark.plan(26)
def test_main_is_named_also_by_what_goes_by_value() -> None:
    script = (
        "from gather_codecs.auto import AutoCodec\n"
        "class Point: pass\n"
        "frames = AutoCodec().encode([Point(), lambda obj: isinstance(obj, Point)])\n"
        "point, is_point = AutoCodec().decode([memoryview(frame) for frame in frames])\n"
        "print(type(point) is Point, is_point(point), is_point(Point()))"
    )
    assert run_python(script).split() == ["True", "True", "True"]


def _local_classes() -> list[Any]:
    variable = TypeVar("variable")

    class Color(enum.Enum):
        RED = 1

    class Base(abc.ABC, Generic[variable]):
        @abc.abstractmethod
        def color(self) -> Color: ...

    @dataclasses.dataclass
    class Child(Base[int]):
        size: int
        names: list[str] = dataclasses.field(default_factory=list)

        def color(self) -> Color:
            return Color.RED

        @property
        def double(self) -> int:
            return 2 * self.size

        @classmethod
        def make(cls, size: int) -> "Child":
            return cls(size)

        @staticmethod
        def three() -> int:
            return 3

    return [Color.RED, Child(4), Child.make]


def test_local_classes_of_every_kind_come_back_and_fit_together(codec: AutoCodec, roundtrip: Any) -> None:
    red, child, make = roundtrip(codec, _local_classes())
    assert child.color() is red
    assert (child.double, child.three(), make(5)) == (8, 3, type(child)(5))
    assert [field.name for field in dataclasses.fields(child)] == ["size", "names"]


@pytest.mark.parametrize(
    "obj", [type(None), type(...), types.FunctionType, enum.Enum, sys, logging.getLogger("a"), len, AnyStr]
)
def test_what_has_a_name_stays_itself(codec: AutoCodec, obj: object) -> None:
    frames = [memoryview(frame) for frame in codec.encode([obj, lambda: 0])]
    assert codec.decode(frames)[0] is obj  # type: ignore[index]


def test_the_standard_streams_have_names(codec: AutoCodec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert codec.decode([memoryview(frame) for frame in codec.encode(file)]) is file


def test_a_class_that_lost_its_name_goes_by_value(codec: AutoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    obj = Counting.__new__(Counting)
    monkeypatch.setattr(sys.modules[__name__], "Counting", None)
    (frame,) = codec.encode(type(obj))
    assert b"num_pickled" in bytes(frame)


def test_methods_are_sent_by_name_where_the_object_has_them(codec: AutoCodec, roundtrip: Any) -> None:
    named, unnamed = roundtrip(codec, [[1].append, types.MethodType(lambda number: number + 1, 5)])
    assert named.__self__ == [1]
    assert unnamed() == 6


def test_each_type_that_cloudpickle_can_encode_is_known_or_pickle_can_encode_it_or_it_is_refused() -> None:
    refused, by_pickle = {memoryview}, {logging.Logger, logging.RootLogger}
    theirs = {kind for kind in cloudpickle.Pickler.dispatch_table.maps[0] if isinstance(kind, type)}
    assert theirs - set(_REDUCERS) == refused | by_pickle


@pytest.mark.parametrize("obj", [memoryview(b"x"), io.TextIOWrapper(io.BytesIO(b"text")), sys._getframe()])
def test_what_would_arrive_as_something_else_is_refused(codec: AutoCodec, obj: object) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        codec.encode([lambda: 0, obj])


def test_functions_of_one_object_share_their_globals_and_those_of_the_next_have_their_own(
    codec: AutoCodec, roundtrip: Any
) -> None:
    namespace: dict[str, Any] = {"count": 0}
    exec("def add():\n global count\n count += 1\ndef get(): return count\n", namespace)
    first, second = (roundtrip(codec, [namespace["add"], namespace["get"]]) for _ in range(2))
    first[0]()
    assert (first[1](), second[1]()) == (1, 0)


def test_an_object_that_cannot_be_encoded_is_an_error_of_pickle(codec: AutoCodec) -> None:
    with pytest.raises(TypeError, match=r"cannot pickle .*lock"):
        codec.encode([lambda: 0, threading.Lock()])


@pytest.mark.parametrize(
    "error", [ValueError("mine"), TypeError("mine"), AttributeError("mine"), MemoryError("mine")], ids=repr
)
def test_an_object_that_fails_by_itself_is_asked_once_and_its_error_kept(codec: AutoCodec, error: Exception) -> None:
    obj = Counting(error)
    with pytest.raises(type(error), match="mine"):
        codec.encode([obj])
    assert obj.num_pickled == 1


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
