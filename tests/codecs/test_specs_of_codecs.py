"""How built-in codecs are named, what overrides do, and what ranks say whose codecs differ."""

from typing import Any

import pytest

from every_codec import EVERY
from gather_codecs import pickle5
from gather_codecs.pickle5 import PickleCodec
from gather_core import Gatherer, SettingsError, SetupError, UnknownPluginError, registry
from gather_core.registry import get_codec, register_codec
from gather_core.spec import parse_spec
from rank_pool import RankPool

SPELLINGS = {
    "pickle": "pickle",
    " pickle + zstd ": None,
    "pickle+zstd:level=1": "pickle+zstd",
    "msgpack+zstd:min_nbytes=5,level=3": "msgpack+zstd:level=3,min_nbytes=5",
    "msgpack:sorted_sets=true+zstd: level = 0x2": "msgpack:sorted_sets=true+zstd:level=2",
    "auto+zstd:level=+3": "auto+zstd:level=3",
}


@pytest.mark.plan(63)
@pytest.mark.parametrize("spec", [*SPELLINGS, *EVERY])
def test_a_spec_and_its_canonical_spelling_name_the_same_codec(spec: str) -> None:
    canonical = SPELLINGS.get(spec, spec)
    if canonical is None:
        with pytest.raises(SettingsError):
            get_codec(spec)
        return
    assert get_codec(spec).spec == canonical
    assert get_codec(canonical).spec == canonical
    assert get_codec(canonical).fingerprint() == get_codec(spec).fingerprint()
    assert [part.name for part in parse_spec(canonical)] == [part.name for part in parse_spec(spec)]


@pytest.mark.plan(63)
@pytest.mark.parametrize(
    ("spec", "text"),
    [
        *(("zstd+msgpack", "'zstd' follows another codec"), ("zstd", "'zstd' follows another codec")),
        *(("msgpack+pickle", "'pickle' cannot follow"), ("pickle+zstd+raw", "'raw' cannot follow")),
        *(("pickle+zstd:level='3'", "level must be an int"), ("pickle+zstd:level=1.5", "level must be an int")),
        *(("pickle+zstd:level=true", "level must be an int"), ("pickle+zstd:min_nbytes=-1", "min_nbytes must be")),
        *(("pickle+zstd:levle=1", "levle"), ("pickle:level=1", "no options"), ("raw:x=1", "no options")),
        *(("msgpack:sorted_sets=1", "sorted_sets must be true or false"), ("pickle+zstd:inner=1", "inner")),
    ],
)
def test_wrong_orders_two_serializers_and_bad_options_are_settings_errors(spec: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        get_codec(spec)


@pytest.mark.plan(63)
def test_an_unknown_part_lists_the_known_ones() -> None:
    with pytest.raises(UnknownPluginError, match=r"no codec is named 'gzip'.*msgpack.*zstd"):
        get_codec("msgpack+gzip")


class OtherPickleCodec(PickleCodec):
    """Takes the name of a built-in."""


@pytest.mark.plan(64)
def test_an_override_of_a_built_in_is_used_by_gatherers_and_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry._codecs, "registered", {})
    with pytest.raises(SettingsError, match="'pickle' is taken by gather-core"):
        register_codec("pickle", OtherPickleCodec)
    register_codec("pickle", OtherPickleCodec, replace=True)
    with Gatherer(codec="pickle", transport="single") as gatherer:
        assert type(gatherer.codec) is OtherPickleCodec
    with pytest.raises(SettingsError, match=f"taken by this process .*{OtherPickleCodec.__name__}"):
        register_codec("pickle", PickleCodec)


class _OtherPython:
    version_info = type("version_info", (), {"major": 3, "minor": 99})


@pytest.mark.plan(66)
@pytest.mark.parametrize(
    ("spec", "what"),
    [("cloudpickle", "other Python"), ("auto+zstd", "other Python"), ("msgpack+zstd", "other spec")],
)
def test_ranks_with_another_codec_or_python_are_told_the_difference_on_every_rank(
    pool: RankPool, spec: str, what: str
) -> None:
    def body(rank: int, world_size: int) -> str:
        patch: Any = pytest.MonkeyPatch()
        mine = spec
        if rank == 1 and what == "other spec":
            mine = f"{spec}:level=2"
        elif rank == 1:
            patch.setattr(pickle5, "sys", _OtherPython)
        try:
            Gatherer(codec=mine, transport="gloo", timeout_s=20).close()
        except SetupError as exc:
            return str(exc)
        finally:
            patch.undo()
        return "it was made"

    texts = set(pool.values(3, body))
    (text,) = texts
    assert text.startswith("rank 1 could not set up: codec is ")
    assert "but ranks 0, 2 have" in text
    there, here = text.split("but ranks 0, 2 have")
    if what == "other Python":
        assert "Python 3.99" in there
        assert "of Python 3." in here
        assert "3.99" not in here
    else:
        assert '"msgpack+zstd:level=2"' in there
        assert '"msgpack+zstd"' in here
