"""Names and spec strings."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fresh_python import run_python
from gather_core import Codec, Frames, Gatherer, SettingsError, UnknownPluginError, register_codec, register_transport
from gather_core import registry as names
from gather_core.registry import (
    codec_class,
    get_codec,
    get_transport,
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
