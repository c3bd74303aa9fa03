"""register_type: classes of the user's come back exactly as what they were; ranks must have the same ones.

Numbers in comments and docstrings are those of plan.toml.
"""

import dataclasses
import enum
import threading
from collections import namedtuple
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch

from gather_codecs import message_registry
from gather_codecs.message_registry import RegisteredTypes
from gather_codecs.messagepack import MessagePackCodec, register_type
from gather_codecs.zstandard_frames import ZstdCodec
from gather_core import Gatherer, SetupError
from gather_core.errors import DecodeError, EncodeError, SettingsError
from rank_pool import RankPool

CODEC = MessagePackCodec()


@pytest.fixture(autouse=True)
def _nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_registry, "_types", RegisteredTypes())


class Point(NamedTuple):
    x: object
    y: object = 0


class Loose(Point):
    """Has a `__dict__`."""


Untyped = namedtuple("Untyped", "a b")


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Mode(enum.Flag):
    R = 1
    W = 2


@dataclasses.dataclass
class Record:
    x: object
    y: list[object] = dataclasses.field(default_factory=list)
    kind: ClassVar[str] = "record"
    made: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        self.made += 1


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: object


@dataclasses.dataclass(eq=False)
class Named(dict[str, object]):
    x: int = 1


class Batch:
    """Custom, with tensors inside."""

    def __init__(self, ids: Any, note: object = None) -> None:
        self.ids, self.note = ids, note


def _batch_parts(batch: Batch) -> object:
    return (batch.ids, batch.note)


def _register_all() -> None:
    for cls in (Point, Untyped, Color, Level, Word, Mode, Record, Frozen):
        register_type(cls.__name__.lower(), cls)
    register_type("batch", Batch, _batch_parts, lambda parts: Batch(*parts))


@pytest.mark.parametrize(
    "obj",
    [
        *(Point(1, (2, [3])), Untyped(1, None), {Point(1): Point(Point(2))}, [Point(torch.ones(2000), np.zeros(500))]),
        *(Color.RED, Color.CRIMSON, [Color.BLUE], {Color.RED: {Level.LOW}}, Level.LOW, Word.YES, (Word.YES, "yes")),
        *(Mode.R, Mode.R | Mode.W, Mode(0), {Mode.R}),
        *(Record(1), Record((1,), [Record(None)]), Frozen(1.5), {Frozen((1,)): Frozen(Frozen({1}))}),
        Batch(torch.arange(3000), [Batch(np.arange(3), Point(1))]),
    ],
    ids=lambda obj: f"{obj!a:.30}",
)
@pytest.mark.plan(9, 13)
def test_objects_of_registered_classes_come_back_exactly(roundtrip: Any, assert_same: Any, obj: object) -> None:
    """9, 13."""
    _register_all()
    assert_same(roundtrip(CODEC, obj), obj)
    assert_same(roundtrip(CODEC, {"a": [1, obj]}), {"a": [1, obj]})


def test_dataclasses_are_not_initialized_again(roundtrip: Any) -> None:
    register_type("record", Record)
    record = Record(1)
    record.made = 7
    assert roundtrip(CODEC, record).made == 7


@pytest.mark.parametrize("obj", [Point(1), Color.RED, Level.LOW, Record(1), Frozen(1), Batch(1)], ids=repr)
@pytest.mark.plan(9)
def test_without_registration_they_are_refused_with_advice(obj: object) -> None:
    """9."""
    with pytest.raises(EncodeError, match=rf"\$\[0\]: .*{type(obj).__name__}.*register_type"):
        CODEC.encode([obj])


def test_subclasses_of_registered_classes_are_refused() -> None:
    register_type("point", Point)
    register_type("frozen", Frozen)
    for obj in (Loose(1), dataclasses.make_dataclass("More", [], bases=(Frozen,), frozen=True)(1)):
        with pytest.raises(EncodeError, match="it keeps no"):
            CODEC.encode(obj)


def test_what_is_more_or_less_than_its_fields_is_refused() -> None:
    register_type("loose", Loose)
    register_type("record", Record)
    more, less, loose = Record(1), Record(1), Loose(1)
    more.extra = 1  # type: ignore[attr-defined]
    del less.y
    loose.extra = 1  # type: ignore[attr-defined]
    for obj in (more, less, loose):
        with pytest.raises(EncodeError, match=r"\$\.a: .*(extra|\(y\)|just its fields)"):
            CODEC.encode({"a": obj})


def test_the_path_leads_into_registered_objects() -> None:
    _register_all()
    bad = object()
    for obj, path in (
        (Record(Point(1, bad)), r"\$\.x\.y"),
        (Batch([bad]), r"\$\[0\]\[0\]"),
        ([Frozen({"a": bad})], r"\$\[0\]\.x\.a"),
    ):
        with pytest.raises(EncodeError, match=f"cannot encode {path}: it keeps no builtins.object"):
            CODEC.encode(obj)


def test_functions_that_fail_or_make_something_else_are_errors(land: Any) -> None:
    def fail(obj: object) -> object:
        raise KeyError("planted")

    register_type("batch", Batch, fail, fail)
    with pytest.raises(EncodeError, match=r"\$\[1\]: taking apart this 'batch' failed: KeyError: 'planted'"):
        CODEC.encode([1, Batch(1)])
    register_type("batch", Batch, _batch_parts, fail, replace=True)
    frames = land(CODEC.encode(Batch(1)))
    with pytest.raises(DecodeError, match="building a 'batch' failed: KeyError: 'planted'"):
        CODEC.decode(frames)
    register_type("batch", Batch, _batch_parts, list, replace=True)
    with pytest.raises(DecodeError, match="from_ of 'batch' made a list, not a Batch"):
        CODEC.decode(frames)
    register_type("batch", Batch, lambda batch: batch, list, replace=True)
    with pytest.raises(EncodeError, match="in a cycle"):
        CODEC.encode(Batch(1))


@pytest.mark.parametrize(
    ("cls", "sent", "data"),
    [
        *((Point, Untyped, (1, 2)), (Record, Frozen, (1,)), (Frozen, Point, (1, 2)), (Color, Word, ("yes",))),
        *((Color, Mode, (3,)), (Mode, Color, ("blue",)), (Point, Color, (1,))),
    ],
)
def test_what_does_not_fit_the_class_here_is_refused(land: Any, cls: Any, sent: Any, data: Any) -> None:
    """54: as from a rank with another class under the tag."""
    register_type("tag", sent)
    frames = land(CODEC.encode(sent(*data)))
    register_type("tag", cls, replace=True)
    with pytest.raises(DecodeError, match="building a 'tag' failed"):
        CODEC.decode(frames)


def test_a_tag_that_is_not_known_here_is_refused_with_advice(land: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    register_type("point", Point)
    frames = land(CODEC.encode([Point(1)]))
    monkeypatch.setattr(message_registry, "_types", RegisteredTypes())
    with pytest.raises(DecodeError, match="nothing is registered under 'point' on this rank; call register_type"):
        CODEC.decode(frames)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        *((("", Point), "tag must be"), (("a b", Point), "tag must be"), ((1, Point), "tag must be")),
        *((("x" * 101, Point), "tag must be"), (("x", Point(1)), "only classes"), (("x", dict), "keeps dict already")),
        *(
            (("x", Batch), "give to and from_"),
            (("x", Batch, str), "both functions"),
            (("x", Batch, None, str), "both"),
        ),
        *((("x", Named), "give to and from_"), (("point", Frozen), "'point' is Point already")),
        (("x", Point), "'x' cannot be Point: 'point' is Point already"),
    ],
)
@pytest.mark.plan(64)
def test_bad_registrations_are_refused_and_change_nothing(arguments: Any, text: str) -> None:
    register_type("point", Point)
    before = CODEC.fingerprint()
    with pytest.raises(SettingsError, match=text):
        register_type(*arguments)
    assert CODEC.fingerprint() == before


@pytest.mark.plan(64)
def test_replacing_takes_the_tag_and_the_class(roundtrip: Any) -> None:
    register_type("point", Point)
    register_type("frozen", Frozen)
    register_type("point", Frozen, replace=True)
    assert roundtrip(CODEC, Frozen(1)) == Frozen(1)
    with pytest.raises(EncodeError):
        CODEC.encode(Point(1))
    register_type("frozen", Point)


def test_the_fingerprint_tells_registrations_apart_and_not_their_order() -> None:
    assert CODEC.fingerprint() == "msgpack"
    register_type("b", Point)
    register_type("a", Color)
    mine = CODEC.fingerprint()
    assert mine.startswith("msgpack with types a, b (")
    assert ZstdCodec(CODEC).fingerprint() == f"{mine}+zstd"
    prints = {mine}
    others: list[Any] = [Untyped, namedtuple("Point", "x z"), enum.Enum("Point", "x y"), Frozen]
    for cls in others:
        register_type("b", cls, replace=True)
        prints.add(CODEC.fingerprint())
    assert len(prints) == 5
    register_type("a", Point, replace=True)
    register_type("b", Color, replace=True)
    register_type("c", Point, replace=True)
    register_type("a", Color, replace=True)
    register_type("b", Point, replace=True)
    assert CODEC.fingerprint() == mine


def test_classes_may_be_registered_from_many_threads() -> None:
    classes: list[Any] = [enum.Enum(f"E{number}", "A") for number in range(64)]
    threads = [threading.Thread(target=register_type, args=(cls.__name__, cls)) for cls in classes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(message_registry.registered_types().by_tag) == len(classes)


@pytest.mark.plan(66)
def test_ranks_with_other_registrations_are_told_so_in_round_0(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        if rank == 1:
            register_type("color", Color)
        try:
            Gatherer(codec="msgpack", transport="gloo", timeout_s=20).close()
        except SetupError as error:
            return str(error)
        finally:
            message_registry._types = RegisteredTypes()
        return "it was made"

    for text in pool.values(2, body):
        assert 'rank 1 could not set up: codec is "msgpack with types color (' in text
        assert '"msgpack"' in text
