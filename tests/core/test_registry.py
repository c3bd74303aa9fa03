"""Names and spec strings."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gather_core import Codec, Frames, Gatherer, SettingsError, UnknownPluginError, register_codec, register_transport
from gather_core import registry as names
from gather_core.registry import codec_class, format_spec, get_codec, get_transport, parse_spec, transport_class
from gather_transports.single import SingleTransport


class PlainCodec(Codec):
    """For the tests."""

    name = "plain"

    def __init__(self, *, level: int = 1) -> None:
        if level > 9:
            raise ValueError(f"level must be at most 9, not {level}")
        self.level = level

    def encode(self, obj: object) -> Frames:
        return [b""]

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        return None


class WrappingCodec(PlainCodec):
    """Wraps another."""

    name = "wrap"

    def __init__(self, inner: Codec, *, on: bool = True) -> None:
        super().__init__()
        self.inner = inner
        self.on = on


class BareCodec(PlainCodec):
    """Takes no options."""

    name = "bare"

    def __init__(self) -> None:
        super().__init__()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(names, "_registered_codecs", {})
    monkeypatch.setattr(names, "_registered_transports", {})
    for codec in (PlainCodec, WrappingCodec, BareCodec):
        register_codec(codec.name, codec)
    return iter(())


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=12),
)


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3))
@example([("zstd", {"level": 3, "path": "a+b,c=d"})])
@example([("a", {"b": "it's"})])
@example([("a", {"b": 'say "x"'})])
@example([("a", {"b": "back\\slash"})])
@example([("a", {"b": "tab\tline\n"})])
@example([("a", {"b": 1e16, "c": 1e-7, "d": float("inf")})])
@example([("a", {"b": ""})])
def test_a_spec_survives_the_round_trip(parts: list[tuple[str, dict[str, object]]]) -> None:
    spec = "+".join(format_spec(name, options) for name, options in parts)
    assert [(part.name, dict(part.options)) for part in parse_spec(spec)] == parts
    again = "+".join(format_spec(part.name, part.options) for part in parse_spec(spec))
    assert again == spec


@given(st.text(max_size=30))
@example("a:b=c")
@example("a:b=1+")
@example('a:b="')
@example("a+b:c=1,d=[1")
def test_any_text_is_a_spec_or_a_settings_error(text: str) -> None:
    try:
        parts = parse_spec(text)
    except SettingsError:
        return
    assert parts


@pytest.mark.parametrize("spec", ["", "+", "a+", "+a", "A", "a:", "a b", "a:b", "a:b=", "a:=1", "a:b=c", "1a", "a++b"])
def test_what_is_not_a_spec_is_an_error_that_shows_it(spec: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_spec(spec)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize("spec", [None, 5, b"a", ["a"]])
def test_a_spec_is_a_string(spec: object) -> None:
    with pytest.raises(SettingsError, match="must be a string"):
        parse_spec(spec)  # type: ignore[arg-type]


def test_a_key_that_is_given_twice_is_an_error() -> None:
    with pytest.raises(SettingsError, match="level"):
        parse_spec("plain:level=1,level=2")


def test_spaces_and_quotes_are_read_as_in_toml() -> None:
    (part,) = parse_spec("a: b = 1 , c = 'x, y' , d = \"+z\"")
    assert part.options == {"b": 1, "c": "x, y", "d": "+z"}


def test_a_codec_is_built_from_its_spec_the_first_part_innermost() -> None:
    codec = get_codec("plain:level=3+wrap:on=false+wrap")
    assert isinstance(codec, WrappingCodec)
    assert codec.on
    assert isinstance(codec.inner, WrappingCodec)
    assert not codec.inner.on
    assert isinstance(codec.inner.inner, PlainCodec)
    assert codec.inner.inner.level == 3


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("plain:levle=3", r"'plain'.*levle.*it takes: level"),
        ("bare:level=3", r"'bare'.*level.*no options"),
        ("plain:level=10", r"'plain:level=10'.*at most 9, not 10"),
        ("plain+bare", r"'bare' cannot follow"),
        ("wrap", r"'wrap'.*inner"),
    ],
)
def test_an_option_that_the_plugin_does_not_take_is_named_with_what_it_takes(spec: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        get_codec(spec)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownPluginError) as caught:
        get_codec("plian")
    text = str(caught.value)
    assert "no codec is named 'plian'. Did you mean 'plain'?" in text
    assert all(name in text for name in ("bare", "plain", "wrap", "pickle", "msgpack"))
    with pytest.raises(UnknownPluginError, match=r"no transport is named 'glo'\. Did you mean 'gloo'"):
        transport_class("glo")


def test_an_unknown_name_that_is_near_to_nothing_suggests_nothing() -> None:
    with pytest.raises(UnknownPluginError) as caught:
        codec_class("qqqqqqqq")
    assert "Did you mean" not in str(caught.value)


def test_a_taken_name_is_an_error_and_can_be_replaced() -> None:
    with pytest.raises(SettingsError, match=r"'plain' is taken by .*PlainCodec.*replace=True"):
        register_codec("plain", BareCodec)
    assert codec_class("plain") is PlainCodec
    register_codec("plain", BareCodec, replace=True)
    assert codec_class("plain") is BareCodec


def test_a_built_in_is_not_shadowed_silently() -> None:
    with pytest.raises(SettingsError, match=r"'pickle' is taken by gather_codecs.pickle5"):
        register_codec("pickle", PlainCodec)
    with pytest.raises(SettingsError, match=r"'single' is taken by gather_transports.single"):
        register_transport("single", SingleTransport)
    assert transport_class("single") is SingleTransport
    register_codec("pickle", PlainCodec, replace=True)
    assert codec_class("pickle") is PlainCodec


def test_an_entry_point_does_not_shadow_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    points = [EntryPoint("pickle", "nowhere:Thing", "g"), EntryPoint("mine", f"{__name__}:Nothing", "g")]
    monkeypatch.setattr(names, "entry_points", lambda group: points)
    assert codec_class("pickle").__name__ == "PickleCodec"
    with pytest.raises(UnknownPluginError, match="mine"):
        codec_class("nobody")


def test_an_entry_point_is_loaded_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    points = [EntryPoint("mine", "gather_transports.single:SingleTransport", "g")]
    monkeypatch.setattr(names, "entry_points", lambda group: points)
    assert transport_class("mine") is SingleTransport


def test_transports_are_not_joined_with_plus() -> None:
    assert isinstance(get_transport("single"), SingleTransport)
    with pytest.raises(SettingsError, match="single\\+threads"):
        get_transport("single+threads")


def test_a_registered_codec_is_used_by_name() -> None:
    with Gatherer("plain:level=2", "single") as gatherer:
        assert gatherer.all_gather("anything") == [None]
        assert isinstance(gatherer.codec, PlainCodec)
        assert gatherer.codec.level == 2


def test_naming_a_codec_imports_no_other_plugin() -> None:
    script = (
        "import sys\n"
        "from gather_core.registry import codec_class\n"
        "codec_class('pickle')\n"
        "print([m for m in ('torch', 'msgpack', 'zstandard', 'cloudpickle', 'pydantic') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
