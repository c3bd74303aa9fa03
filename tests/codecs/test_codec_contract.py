"""CodecContract finds each fault that a codec can have, says which it is, and finds none in codecs without."""

import functools
import re
from collections.abc import Callable, Sequence

import pytest

from broken_codecs import REJECTED_BY, SpecForgetsTheOption
from gather_core import registry
from gather_core.codec import Codec
from gather_core.testing.codec_contract import CodecContract
from right_codec import RightCodec

CLAUSES = sorted(name for name in dir(CodecContract) if name.startswith("test_"))


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


def rejections(codec: type[RightCodec]) -> tuple[dict[str, str], list[str]]:
    """What the tests that fail say, and the tests that are skipped."""
    case = _Case(codec, functools.partial(codec, key=7) if codec is SpecForgetsTheOption else codec)
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


def test_every_clause_rejects_some_codec() -> None:
    assert {clause for clauses in REJECTED_BY.values() for clause in clauses} == set(CLAUSES)
