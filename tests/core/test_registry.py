"""Names and spec strings."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gather_core import Codec, Frames, Gatherer, SettingsError, UnknownPluginError, register_codec, register_transport
from gather_core import registry as names
from gather_core.registry import (
    SpecPart,
    codec_class,
    format_spec,
    get_codec,
    get_transport,
    parse_spec,
    transport_class,
)
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
    monkeypatch.setattr(names._codecs, "registered", {})
    monkeypatch.setattr(names._transports, "registered", {})
    for codec in (PlainCodec, WrappingCodec, BareCodec):
        register_codec(codec.name, codec)
    return iter(())


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.text("\"'\\+,:=# \n\r\x7f\x85\u2028\ud800az", max_size=12),
)
PARTS = st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3)
SPECS = PARTS.map(lambda parts: "+".join(format_spec(name, options) for name, options in parts))
BROKEN_SPECS = st.tuples(SPECS, st.integers(0, 40), st.integers(0, 3), st.text("a1+,:=\"'\\ \n", max_size=2)).map(
    lambda edit: edit[0][: edit[1]] + edit[3] + edit[0][edit[1] + edit[2] :]
)


def respell(parts: list[SpecPart]) -> str:
    return "+".join(format_spec(part.name, part.options) for part in parts)


@given(PARTS)
@example([("zstd", {"level": 3, "path": "a+b,c=d"})])
@example([("a", {"b": "it's"})])
@example([("a", {"b": 'say "x"'})])
@example([("a", {"b": 'p+q"'}), ("c", {})])
@example([("a", {"b": "'+q\"+q\\", "c": 'x"+y'})])
@example([("a", {"b": "back\\slash"})])
@example([("a", {"b": "back\\"}), ("b", {"c": "+d"})])
@example([("a", {"b": "tab\tline\n"})])
@example([("a", {"b": 1e16, "c": 1e-7, "d": float("inf")})])
@example([("a", {"b": ""})])
def test_a_spec_survives_the_round_trip(parts: list[tuple[str, dict[str, object]]]) -> None:
    spec = "+".join(format_spec(name, options) for name, options in parts)
    parsed = parse_spec(spec)
    assert [(part.name, dict(part.options)) for part in parsed] == parts
    assert respell(parsed) == spec


@given(st.one_of(st.text(max_size=30), st.text("ab1+,:=\"'\\ \t\n.-_e#[]{}", max_size=30), SPECS, BROKEN_SPECS))
@example("a:b=c")
@example("a:b=1+")
@example('a:b="')
@example("a+b:c=1,d=[1")
@example("a:b=nan")
@example("a: b = 0x_f , c = +1E+5 +d")
@example("a:b=0x" + "f" * 5000)
@example("a:b=" + "1" * 5000)
def test_any_text_is_a_spec_with_one_canonical_spelling_or_a_settings_error(text: str) -> None:
    try:
        parts = parse_spec(text)
    except SettingsError:
        return
    assert {type(value) for part in parts for value in part.options.values()} <= {bool, int, float, str}
    canonical = respell(parts)
    again = parse_spec(canonical)
    assert repr(again) == repr(parts)  # repr: nan is not equal to itself
    assert respell(again) == canonical


@pytest.mark.parametrize(
    "spec",
    [
        *("", "+", "a+", "+a", "A", "a:", "a b", "a + b", "a:b", "a:b=", "a:=1", "a:b=c", "1a", "a++b", "a:1=2", "a-b"),
        *("a:b=1,", "a:b=1,+c", "a:,b=1", "a:b=1,,c=2", "a:b=1=2", "a:b=it's", "a:b=-", "a:b=1e+x", "a:b=True"),
    ],
)
def test_what_is_not_a_spec_is_an_error_that_shows_it(spec: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_spec(spec)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        *("[1]", "[]", "{c=1}", "{}", "2020-01-01", "07:32:00", "2020-01-01T00:00:00+01:00", "1 # why"),
        *("1\nc = 2", "\n1", "'b\nc'", '"b\nc"', '"b\\\nc"', '"""b"""', "'''b'''", "'b\r\nc'"),
    ],
)
def test_an_option_is_a_scalar_on_one_line(value: str) -> None:
    with pytest.raises(SettingsError):
        parse_spec(f"a:b={value}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("+5", 5), ("-1", -1), ("1_000", 1000), ("0xfF", 255), ("1e+5", 1e5), ("+1E-5", 1e-5)),
        *(("-inf", float("-inf")), ("true", True), ("'a\\+b'", "a\\+b"), (r'"\u00e9+\""', 'é+"')),
    ],
)
def test_scalars_are_read_as_in_toml_and_end_where_the_next_part_begins(text: str, value: object) -> None:
    assert parse_spec(f"a:b={text}+c") == [SpecPart("a", {"b": value}), SpecPart("c", {})]


@pytest.mark.parametrize("value", [None, [1], b"a", 1j])
def test_what_a_spec_cannot_hold_is_not_written_into_one(value: object) -> None:
    with pytest.raises(SettingsError, match="bool, int, float and str, not"):
        format_spec("a", {"b": value})


def test_numbers_of_other_libraries_are_written_as_plain_ones() -> None:
    import numpy as np

    assert format_spec("a", {"b": np.float64(0.5)}) == "a:b=0.5"


def run_python(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    return done.stdout.strip()


READ_HOSTILE_SPECS = r"""
from gather_core import SettingsError
from gather_core.registry import parse_spec

n = 300_000
blanks = " " * n
for spec in (
    "x:a=" + "+a" * n + "!", "x:a=" + blanks + "!", "x:a" + blanks + "!", "x:a=1" + blanks + "!",
    "x:a='" + "+a" * n, 'x:a="' + "\\" * n, "x:a=" + "1_" * n + "!",
):
    try:
        parse_spec(spec)
    except SettingsError:
        print("refused")
"""


def test_hostile_specs_of_300_kb_are_read_in_one_pass() -> None:
    """A pass per character would take the better part of an hour."""
    assert run_python(READ_HOSTILE_SPECS).split() == ["refused"] * 7


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
        ("plain+plain", r"'plain' cannot follow"),
        ("plain+wrap:of=false", r"'wrap'.*of.*it takes: on"),
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


@pytest.mark.parametrize("name", ["my-codec", "Mine", "", "1st", "mine\n", "a+b", 5, None])
def test_a_name_that_no_spec_can_hold_is_not_registered(name: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        register_codec(name, PlainCodec)
    assert repr(name) in str(caught.value)
    with pytest.raises(UnknownPluginError):
        codec_class("nobody")


@pytest.mark.parametrize("thing", [PlainCodec(), "pickle", int, SingleTransport, None])
def test_what_is_not_a_codec_class_is_not_registered(thing: Any) -> None:
    with pytest.raises(SettingsError, match=r"codec 'mine' must be a subclass of Codec, not ") as caught:
        register_codec("mine", thing)
    assert repr(thing) in str(caught.value)
    with pytest.raises(UnknownPluginError):
        codec_class("mine")


def test_what_is_not_a_transport_class_is_not_registered() -> None:
    with pytest.raises(SettingsError, match=r"transport 'mine' must be a subclass of Transport, not .*PlainCodec"):
        register_transport("mine", PlainCodec)  # type: ignore[arg-type]


def test_auto_is_a_known_transport_that_takes_nothing_and_is_nobody_elses_name() -> None:
    with pytest.raises(UnknownPluginError, match=r"'autoo'\. Did you mean 'auto'\? Known: auto, gloo, single, threads"):
        get_transport("autoo")
    with pytest.raises(SettingsError, match="transport 'auto' stands alone, without options"):
        get_transport("auto:x=1")
    with pytest.raises(SettingsError, match="'auto' is reserved"):
        register_transport("auto", SingleTransport, replace=True)


@pytest.mark.parametrize(
    ("spec", "name"),
    [("zstd", "zstd"), ("zstd+pickle", "zstd"), ("zstd:level=3", "zstd"), ("wrap", "wrap"), ("wrap:inner=1", "wrap")],
)
def test_a_codec_that_follows_another_cannot_come_first(spec: str, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"'{name}' follows another codec, as in 'msgpack\+{name}'"):
        get_codec(spec)


def test_a_constructor_without_a_readable_signature_is_not_misreported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainCodec, "__signature__", "odd", raising=False)
    with pytest.raises(TypeError, match="odd"):
        get_codec("plain")


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


def install(folder: Path, group: str, entry_point: str) -> None:
    """Writes what pip leaves behind of the distribution `other-plugins`."""
    info = folder / "other_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry_point}\n")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("gather_transports.single:SingleTransport", "must be a subclass of Codec, not .*SingleTransport"),
        ("gather_core.settings:MIN_SLOT_NBYTES", "must be a subclass of Codec, not 1024"),
        ("gather_core.settings:Missing", "cannot be loaded: AttributeError: .*Missing"),
        ("nowhere_at_all:Thing", "cannot be loaded: ModuleNotFoundError: .*nowhere_at_all"),
    ],
)
def test_an_entry_point_that_is_no_codec_is_reported_when_used_with_its_distribution(
    target: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "gather_core.codecs", f"theirs = {target}")
    monkeypatch.syspath_prepend(tmp_path)
    assert codec_class("pickle").__name__ == "PickleCodec"
    with pytest.raises(UnknownPluginError, match="theirs"):
        codec_class("nobody")
    with pytest.raises(SettingsError, match=rf"codec 'theirs', .*'{target}' of distribution 'other-plugins', {text}"):
        codec_class("theirs")


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
    assert run_python(script) == "[]"
