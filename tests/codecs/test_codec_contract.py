"""CodecContract finds each fault that a codec can have, says which it is, and finds none in codecs without."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import cloudpickle
import pytest

import broken_codecs
import remembering_codecs
import right_codec
from broken_codecs import REJECTED_BY, SpecForgetsTheOption
from gather_core import DecodeError, FunctionCodec, registry
from gather_core.codec import Codec, DecodeOptions, Frames, Trust
from gather_core.testing.codec_contract import CodecContract
from right_codec import RightCodec

ANOTHER_PROCESS = "test_frames_can_be_decoded_by_another_process"
CLAUSES = sorted((name for name in dir(CodecContract) if name.startswith("test_")), key=lambda n: n != ANOTHER_PROCESS)
"""That one first, as pytest does."""
_MODULES = (broken_codecs, remembering_codecs, right_codec)


@pytest.fixture(autouse=True)
def _broken_codecs_by_value() -> Iterator[None]:
    """Importing their module takes seconds."""
    for module in _MODULES:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in _MODULES:
        cloudpickle.unregister_pickle_by_value(module)


class _Case(CodecContract):
    """The contract for one codec, to be run by hand."""

    def __init__(self, codec: type[RightCodec], make_codec: Callable[[], Codec]) -> None:
        self._codec = codec
        self._make_codec = make_codec

    def make_codec(self) -> Codec:
        return self._make_codec()

    def objects(self) -> Sequence[object]:
        return self._codec.objects

    def refused(self) -> Sequence[object]:
        return self._codec.refused


class _OneProcess(_Case):
    """For codecs whose fault shows here: another process takes as long as all else together."""

    def test_frames_can_be_decoded_by_another_process(self) -> None:
        pytest.skip("shows in one process")


def rejections(codec: type[RightCodec]) -> tuple[dict[str, str], list[str]]:
    """What the tests that fail say, and the tests that are skipped."""
    kind = _Case if ANOTHER_PROCESS in REJECTED_BY.get(codec, {ANOTHER_PROCESS: ""}) else _OneProcess
    case = kind(codec, functools.partial(codec, key=7) if codec is SpecForgetsTheOption else codec)
    failed, skipped = {}, []
    for clause in CLAUSES:
        try:
            getattr(case, clause)()
        except pytest.skip.Exception:
            skipped.append(clause)
        except (AssertionError, pytest.fail.Exception) as exc:
            failed[clause] = str(exc)
    return failed, skipped


@pytest.mark.parametrize("codec", REJECTED_BY, ids=lambda codec: str(codec.__name__))
def test_a_broken_codec_is_rejected_for_its_fault_and_for_nothing_else(
    codec: type[RightCodec], monkeypatch: pytest.MonkeyPatch
) -> None:
    if codec is SpecForgetsTheOption:
        monkeypatch.setitem(registry._codecs.registered, codec.name, codec)
    failed, _ = rejections(codec)
    assert failed.keys() == REJECTED_BY[codec].keys(), failed
    for clause, text in REJECTED_BY[codec].items():
        assert re.search(text, failed[clause]), failed[clause]


def test_a_right_codec_is_not_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._codecs.registered, RightCodec.name, RightCodec)
    failed, skipped = rejections(RightCodec)
    assert failed == {}
    assert skipped == [
        "test_limits_hold_for_what_grows_while_it_is_decoded",
        "test_tensors_land_where_the_receiver_wants_them",
    ]


class _Json(FunctionCodec):
    objects: ClassVar[Sequence[object]] = ([1, 2], {"a": [None, 2.5]}, [], 12, "text")
    refused: ClassVar[Sequence[object]] = (object(),)

    def __init__(self, ending: str = "") -> None:
        super().__init__("json", lambda obj: json.dumps(obj) + ending, json.loads, trust=Trust.DATA)


class _EndsInANewline(_Json):
    def __init__(self) -> None:
        super().__init__(" \r\n")


class _CutsIntoPieces(_Json):
    """Frames of 8 bytes."""

    def encode(self, obj: object) -> Frames:
        (text,) = super().encode(obj)
        return [text[start : start + 8] for start in range(0, len(text), 8)]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        if not frames or any(len(frame) != 8 for frame in frames[:-1]) or not frames[-1]:
            raise DecodeError("wrong frames")
        return super().decode([memoryview(b"".join(frames))], options)


class _SecondWire(_Json):
    wire_version = 2

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}, wire 2"


class _ThirdWire(RightCodec):
    wire_version = 3


@pytest.mark.parametrize("codec", [_EndsInANewline, _CutsIntoPieces, _SecondWire, _ThirdWire])
def test_what_is_no_fault_is_not_rejected(codec: Any) -> None:
    failed, _ = rejections(codec)
    assert failed == {}


def test_every_clause_rejects_some_codec() -> None:
    assert {clause for clauses in REJECTED_BY.values() for clause in clauses} == set(CLAUSES)
