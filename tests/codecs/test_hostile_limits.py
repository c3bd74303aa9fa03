"""Depth, container length and string length: what is above them is refused on the rank that decodes, which says why."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gather_codecs import message_registry
from gather_codecs.messagepack import MessagePackCodec, register_type
from gather_core import Codec, DecodeError, DecodeOptions, EncodeError, Frames, Gatherer, LimitError, Limits, Trust
from gather_core.codec_border import CodecBorder
from gather_core.exactness import difference
from gather_core.registry import get_codec
from gather_core.testing.codec_frames import Landed, planted
from gather_transports.threads import ThreadGroup, ThreadRank
from thread_gatherers import caught, on_gatherers, texts

SPECS = ["msgpack", "msgpack:sorted_sets=true", "msgpack+zstd:min_nbytes=1"]


def _decode(codec: Codec, obj: object, limits: Limits) -> Any:
    return codec.decode(
        Landed([memoryview(f).cast("B") for f in codec.encode(obj)]).views, DecodeOptions(limits=limits)
    )


def _comes_back(codec: Codec, obj: object, limits: Limits) -> bool:
    return difference(_decode(codec, obj, limits), obj) is None


def _nested(wrap: Callable[[Any], Any], depth: int) -> Any:
    """A container with `depth` more inside each other."""
    obj: Any = "x"
    for _ in range(depth + 1):
        obj = wrap(obj)
    return obj


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda obj: [obj],
    "dict": lambda obj: {"a": obj},
    "tuple": lambda obj: (obj,),
    "frozenset": lambda obj: frozenset([obj]),
    "ordered": lambda obj: OrderedDict(a=obj),
    "counter": lambda obj: Counter({"a": obj}),
    "slice": lambda obj: slice(obj, None),
    "list and tuple": lambda obj: (obj,) if isinstance(obj, list) else [obj],
    "list and dict": lambda obj: {1: obj} if isinstance(obj, list) else [obj],
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_objects_of_the_allowed_depth_come_back_and_deeper_ones_are_refused(spec: str, wrap: str) -> None:
    codec = get_codec(spec)
    for depth in (1, 2, 5, 40):
        limits = Limits(depth=depth)
        assert _comes_back(codec, _nested(WRAPS[wrap], depth), limits)
        with pytest.raises(LimitError, match=f"depth={depth}"):
            _decode(codec, _nested(WRAPS[wrap], depth + 1), limits)


@pytest.mark.parametrize("wrap", ["list", "dict", "tuple", "frozenset", "ordered", "list and tuple"])
def test_the_default_depth_takes_all_that_encode_takes(wrap: str) -> None:
    deepest = max(depth for depth in range(90, 110) if _can_be_encoded(_nested(WRAPS[wrap], depth)))
    assert 99 <= deepest <= 101
    assert _comes_back(MessagePackCodec(), _nested(WRAPS[wrap], deepest), Limits())


def _can_be_encoded(obj: object) -> bool:
    try:
        return len(MessagePackCodec().encode(obj)) == 1
    except EncodeError:
        return False


def test_no_limit_takes_the_codec_deeper_than_it_goes() -> None:
    head = b"\x91" * 500 + b"\x01"
    with pytest.raises((DecodeError, LimitError)):
        MessagePackCodec().decode([memoryview(head)], DecodeOptions(limits=Limits(depth=10_000)))


class _Point:
    def __init__(self, inner: object) -> None:
        self.inner = inner


def test_what_a_registered_class_is_taken_apart_into_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_registry, "_types", message_registry._types)
    register_type("point", _Point, to=lambda point: point.inner, from_=_Point)
    back = _decode(MessagePackCodec(), [_Point([[1]])], Limits(depth=4))
    assert back[0].inner == [[1]]
    with pytest.raises(LimitError, match="depth=2"):
        _decode(MessagePackCodec(), [_Point([[[[1]]]])], Limits(depth=2))


ITEMS = list(range(300))
CONTAINERS: list[Any] = [
    *(ITEMS, tuple(ITEMS), set(ITEMS), frozenset(ITEMS), dict.fromkeys(ITEMS), OrderedDict.fromkeys(ITEMS)),
    *(Counter(ITEMS), [ITEMS], {"a": ITEMS}, {tuple(ITEMS): 1}, [1, {"a": (set(ITEMS),)}], [None] * 300),
    *([[1]] * 300, [(1,)] * 300, dict.fromkeys(map(str, ITEMS), (1,)), [slice(tuple(ITEMS), None)]),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("obj", CONTAINERS, ids=lambda obj: f"{type(obj).__name__} {obj!r:.20}")
def test_containers_of_the_allowed_length_come_back_and_longer_ones_are_refused(spec: str, obj: Any) -> None:
    codec = get_codec(spec)
    assert _comes_back(codec, obj, Limits(container_length=300))
    with pytest.raises(LimitError, match="container_length=299"):
        _decode(codec, obj, Limits(container_length=299))


TEXT = "é" * 2000
STRINGS: list[Any] = [
    *(TEXT, TEXT.encode(), [TEXT], {TEXT: 1}, {1: TEXT}, (TEXT,), {TEXT}, [bytearray(TEXT.encode())], Counter([TEXT])),
    *(OrderedDict(a=TEXT), slice(TEXT, None), [[(TEXT.encode(), 1)]], bytearray(4000), "x" * 4000),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("obj", STRINGS, ids=lambda obj: f"{type(obj).__name__} {obj!r:.20}")
def test_strings_of_the_allowed_length_come_back_and_longer_ones_are_refused(spec: str, obj: Any) -> None:
    codec = get_codec(spec)
    assert _comes_back(codec, obj, Limits(string_nbytes=4000))
    with pytest.raises(LimitError, match="string_nbytes=3999"):
        _decode(codec, obj, Limits(string_nbytes=3999))


def test_a_long_message_of_short_strings_and_arrays_in_frames_are_no_long_strings() -> None:
    limits = Limits(string_nbytes=1024)
    obj = [("x" * 1000, {"k" * 1000: (b"y" * 1000,)})] * 50
    assert _comes_back(MessagePackCodec(), obj, limits)
    assert len(_decode(MessagePackCodec(), (np.zeros(100_000), torch.zeros(100_000)), limits)[1]) == 100_000


@pytest.mark.parametrize("spec", ["pickle", "cloudpickle", "auto", "raw"])
def test_other_codecs_have_no_such_limits(spec: str) -> None:
    obj = bytes(5000)
    assert _comes_back(get_codec(spec), obj, Limits(depth=1, container_length=1, string_nbytes=1))


@pytest.mark.parametrize(
    ("limits", "obj"),
    [
        (Limits(depth=3), _nested(WRAPS["list"], 5)),
        (Limits(container_length=10), ITEMS),
        (Limits(string_nbytes=10), TEXT),
        (Limits(expansion_ratio=2), bytes(50_000)),
    ],
    ids=["depth", "container", "string", "ratio"],
)
def test_every_rank_names_the_rank_whose_object_is_above_a_limit_and_the_group_goes_on(
    limits: Limits, obj: object
) -> None:
    def body(gatherer: Gatherer) -> object:
        exc = caught(gatherer.all_gather, obj if gatherer.rank == 1 else 0)
        assert isinstance(exc, DecodeError), repr(exc)
        assert "cannot decode the object of rank 1: " in str(exc)
        assert isinstance(exc.__cause__, LimitError), repr(exc.__cause__)
        return gatherer.all_gather(gatherer.rank)

    assert on_gatherers(2, body, codec="msgpack+zstd", limits=limits) == [[0, 1]] * 2


@pytest.mark.parametrize("name", ["depth", "container_length", "string_nbytes"])
def test_a_limit_that_differs_on_one_rank_is_an_error_on_all_naming_it(name: str) -> None:
    def construct(member: ThreadRank) -> object:
        limits = Limits(**{name: 7 + member.rank})
        with Gatherer(transport="threads", group=member, limits=limits, timeout_s=10) as gatherer:
            return gatherer.all_gather(member.rank)

    (text,) = texts(ThreadGroup(2).run(construct))
    assert f'"{name}": 7' in text
    assert f'"{name}": 8' in text


class _Sends(Codec):
    """Rank 1 sends what it is given, as if it were another program; the others decode as ever."""

    name = "sends-in-test"

    def __init__(self, spec: str) -> None:
        self._codec = get_codec(spec)
        self.trust = self._codec.trust  # type: ignore[misc]

    def encode(self, obj: Any) -> Frames:
        return obj if isinstance(obj, list) else self._codec.encode(obj)

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        return self._codec.decode(frames, options)


@pytest.mark.plan(57)
@pytest.mark.parametrize("spec", ["msgpack", "raw", "msgpack+zstd", "raw+zstd", "pickle", "cloudpickle", "auto"])
def test_bytes_that_are_not_the_codecs_own_are_a_decode_error_with_its_cause_that_names_the_rank(spec: str) -> None:
    junk: list[list[bytes]] = [[b"\xc1 not its own"], [b"", b""], [bytes(8), b"\x80\x05"]]
    messages = [*junk, *([frame] for frame in planted())] if _Sends(spec).trust is Trust.DATA else junk

    def body(gatherer: Gatherer) -> object:
        for frames in messages:
            exc = caught(gatherer.all_gather, frames if gatherer.rank == 1 else b"fine")
            assert isinstance(exc, DecodeError), repr(exc)
            assert "cannot decode the object of rank 1: " in str(exc)
            assert isinstance(exc.__cause__, Exception)
        return gatherer.all_gather(b"next")

    assert on_gatherers(2, body, codec=_Sends(spec)) == [[b"next"] * 2] * 2


@pytest.mark.parametrize(
    "raised", [MemoryError("no"), RecursionError("deep"), LimitError("above"), KeyError("k"), ValueError()]
)
def test_whatever_a_codec_raises_is_a_decode_error_that_names_the_rank(raised: Exception) -> None:
    class Raises(_Sends):
        def decode(self, frames: Sequence[memoryview], options: Any = None) -> object:
            raise raised

    with pytest.raises(DecodeError, match=rf"of rank 7: {type(raised).__name__}") as info:
        CodecBorder(Raises("msgpack"), DecodeOptions()).decode(7, [memoryview(b"")])
    assert info.value.__cause__ is raised
