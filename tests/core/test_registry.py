"""Names and spec strings."""

import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pytest

from fake_distribution import install
from fresh_python import run_python
from gather_core import (
    Codec,
    Frames,
    FunctionCodec,
    Gatherer,
    SettingsError,
    Transport,
    UnknownPluginError,
    distributions,
    register_codec,
    register_transport,
)
from gather_core import registry as names
from gather_core.registry import (
    codec_class,
    get_codec,
    get_transport,
    transport_class,
    transport_classes,
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


class OtherPlainCodec(PlainCodec):
    """Another of the same name."""


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
@pytest.mark.plan(63)
def test_an_option_that_the_plugin_does_not_take_is_named_with_what_it_takes(spec: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        get_codec(spec)


@pytest.mark.plan(63)
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
    with pytest.raises(UnknownPluginError, match=r"'autoo'\. Did you mean 'auto'\? Known: .*\bauto\b.*\bgloo\b"):
        get_transport("autoo")
    with pytest.raises(SettingsError, match="transport 'auto' stands alone, without options"):
        get_transport("auto:x=1")
    with pytest.raises(SettingsError, match="'auto' is reserved"):
        register_transport("auto", SingleTransport, replace=True)


class JointTransport(SingleTransport):
    """Joins two others."""

    name = "hierarchical"

    def __init__(self, inner: Transport, outer: Transport) -> None:
        super().__init__()
        self.joined = (inner, outer)


def test_two_transports_are_joined_the_one_inside_a_host_first() -> None:
    register_transport("hierarchical", JointTransport, replace=True)
    joint = get_transport("threads+gloo:chunk_nbytes=4096")
    assert isinstance(joint, JointTransport)
    assert [part.spec for part in joint.joined] == ["threads", "gloo:chunk_nbytes=4096"]
    assert [cls.name for cls in transport_classes("threads+gloo")] == ["hierarchical", "threads", "gloo"]


def test_without_what_joins_them_two_transports_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: point for name, point in names._transports._builtin.items() if name != "hierarchical"}
    monkeypatch.setattr(names._transports, "_builtin", others)
    monkeypatch.setattr(names, "offers_of_name", lambda group, name: [])
    with pytest.raises(
        UnknownPluginError, match=r"'threads\+gloo': what joins two, .*'hierarchical', is not installed"
    ):
        get_transport("threads+gloo")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("threads+gloo+gloo", "joins two transports, one inside a host and one between hosts"),
        ("threads+auto", "'auto' stands alone"),
        ("hierarchical", "'hierarchical' joins two others: name those"),
        ("threads+gloo:speed=1", "it takes: "),
        ("threads+glo", "Did you mean 'gloo'"),
    ],
)
def test_what_cannot_be_joined_is_refused_by_name(spec: str, text: str) -> None:
    register_transport("hierarchical", JointTransport, replace=True)
    with pytest.raises((SettingsError, UnknownPluginError), match=re.escape(text)):
        get_transport(spec)


def test_a_transport_that_joins_less_or_more_than_two_is_refused_with_the_reason() -> None:
    class OneTransport(SingleTransport):
        name = "hierarchical"

    register_transport("hierarchical", OneTransport, replace=True)
    with pytest.raises(SettingsError, match="'hierarchical' cannot follow another part"):
        get_transport("threads+gloo")


@pytest.mark.parametrize(
    ("spec", "name"),
    [("zstd", "zstd"), ("zstd+pickle", "zstd"), ("zstd:level=3", "zstd"), ("wrap", "wrap"), ("wrap:inner=1", "wrap")],
)
@pytest.mark.plan(63)
def test_a_codec_that_follows_another_cannot_come_first(spec: str, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"'{name}' follows another codec, as in 'msgpack\+{name}'"):
        get_codec(spec)


def test_a_constructor_without_a_readable_signature_is_not_misreported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainCodec, "__signature__", "odd", raising=False)
    with pytest.raises((TypeError, ValueError), match=r"odd|invalid signature"):  # by version of Python
        get_codec("plain")


@pytest.mark.plan(64)
def test_a_taken_name_is_an_error_that_names_both_and_can_be_replaced() -> None:
    text = (
        rf"the codec name 'plain' is taken by this process \({__name__}:PlainCodec\), so this process "
        rf"\({__name__}:OtherPlainCodec\) cannot have it; .*replace=True"
    )
    with pytest.raises(SettingsError, match=text):
        register_codec("plain", OtherPlainCodec)
    assert codec_class("plain") is PlainCodec
    register_codec("plain", OtherPlainCodec, replace=True)
    assert codec_class("plain") is OtherPlainCodec


def test_the_same_class_may_be_registered_again() -> None:
    register_codec("plain", PlainCodec)
    register_transport("single", SingleTransport)
    assert codec_class("plain") is PlainCodec
    assert transport_class("single") is SingleTransport


class OwnPickleCodec(PlainCodec):
    name = "pickle"


class OwnSingleTransport(SingleTransport):
    """Has the name of a built-in."""


@pytest.mark.plan(64)
def test_a_built_in_is_not_shadowed_silently() -> None:
    with pytest.raises(
        SettingsError, match=r"'pickle' is taken by gather-core \S+ \(gather_codecs.pickle5:PickleCodec"
    ):
        register_codec("pickle", OwnPickleCodec)
    with pytest.raises(SettingsError, match=r"'single' is taken by gather-core \S+ \(gather_transports.single"):
        register_transport("single", OwnSingleTransport)
    assert transport_class("single") is SingleTransport
    register_codec("pickle", OwnPickleCodec, replace=True)
    assert codec_class("pickle") is OwnPickleCodec


def test_a_class_of_another_name_is_not_registered_as_specs_show_its_own() -> None:
    with pytest.raises(SettingsError, match=r"codec 'mine' is called 'plain' by its class: PlainCodec.name must be 'm"):
        register_codec("mine", PlainCodec)
    with pytest.raises(SettingsError, match=r"codec 'mine' has no name: set FunctionCodec.name"):
        register_codec("mine", FunctionCodec)


class HalfACodec(Codec):
    name = "half"

    def encode(self, obj: object) -> Frames:
        return [b""]


class SilentTransport(SingleTransport):
    name = "silent"


def test_a_class_that_cannot_be_built_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="codec 'half' cannot be built: HalfACodec does not define decode"):
        register_codec("half", HalfACodec)  # type: ignore[type-abstract]
    monkeypatch.delattr(SingleTransport, "capabilities")
    with pytest.raises(SettingsError, match=r"'silent' does not say what it can: set SilentTransport\.capabilities"):
        register_transport("silent", SilentTransport)


def test_a_name_that_an_installed_distribution_has_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "theirs", {"codecs": ["bare_2 = nowhere:Thing"]}, version="2.5")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(BareCodec, "name", "bare_2")
    with pytest.raises(SettingsError, match=r"'bare_2' is taken by theirs 2.5 \(nowhere:Thing\), so this process"):
        register_codec("bare_2", BareCodec)
    register_codec("bare_2", BareCodec, replace=True)
    assert codec_class("bare_2") is BareCodec


def test_who_asks_is_named_by_its_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"from {PlainCodec.__module__} import PlainCodec\nclass AsksCodec(PlainCodec): pass\n"
    install(tmp_path, "asking-plugins", {}, modules={"asks_for_plain": source}, version="3.1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, PlainCodec.__module__, sys.modules[PlainCodec.__module__])
    with pytest.raises(SettingsError, match=r"so asking-plugins 3.1 \(asks_for_plain:AsksCodec\) cannot have it"):
        register_codec("plain", import_module("asks_for_plain").AsksCodec)


def test_a_module_may_register_what_its_own_entry_point_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from gather_core import register_transport\n"
        "from gather_transports.single import SingleTransport\n"
        "class Mine(SingleTransport):\n    name = 'registers_itself'\n"
        "register_transport('registers_itself', Mine)\n"
    )
    points = {"transports": ["registers_itself = registers_itself:Mine"]}
    install(tmp_path, "other-plugins", points, modules={"registers_itself": source})
    monkeypatch.syspath_prepend(tmp_path)
    assert transport_class("registers_itself").__name__ == "Mine"


def test_an_entry_point_does_not_shadow_a_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "other-plugins", {"codecs": ["pickle = nowhere:Thing"], "transports": ["auto = nowhere:Thing"]})
    monkeypatch.syspath_prepend(tmp_path)
    assert codec_class("pickle").__name__ == "PickleCodec"
    with pytest.raises(SettingsError, match="stands alone"):
        transport_class("auto")


def test_a_name_that_two_distributions_offer_is_an_error_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        install(tmp_path, name, {"codecs": [f"disputed = {__name__}:Thing"]})
    monkeypatch.syspath_prepend(tmp_path)
    assert codec_class("plain") is PlainCodec
    with pytest.raises(SettingsError, match=r"'disputed' is offered by (one|two) 1.0 .* and (one|two) 1.0 .*uninstall"):
        codec_class("disputed")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("gather_transports.single:SingleTransport", "must be a subclass of Codec, not .*; upgrade or uninstall other"),
        ("gather_core.settings:MIN_SLOT_NBYTES", "must be a subclass of Codec, not 1024; upgrade"),
        ("gather_core.settings:Missing", "cannot be loaded: AttributeError: .*Missing.*; upgrade or uninstall other-"),
        ("gather_core.codec:Codec", "cannot be built: Codec does not define decode, encode; upgrade"),
        ("gather_codecs.pickle5:PickleCodec", "is called 'pickle' by its class: PickleCodec.name must be 'theirs'"),
        ("nowhere_at_all:Thing", "cannot be loaded: ModuleNotFoundError: .*other-plugins 1.0 does not hold what it"),
        ("needs_extra:Thing", r"ModuleNotFoundError: No module named 'some_module'; install other-plugins\[fast\]"),
        ("needs_plain:Thing", r"No module named 'plain_one'; install plain-one$"),
        ("needs_unknown:Thing", r"No module named 'unheard_of'; install what provides 'unheard_of', or uninstall"),
        ("exits:Thing", "cannot be loaded: SystemExit: no licence"),
        ("not a target", "cannot be loaded: "),
    ],
)
@pytest.mark.plan(65)
def test_an_entry_point_that_is_no_codec_is_reported_when_used_with_its_distribution(
    target: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {
        "needs_extra": "import some_module.inside",
        "needs_plain": "import plain_one",
        "needs_unknown": "import unheard_of",
        "exits": "raise SystemExit('no licence')",
    }
    requires = ["plain-one>=2", 'some-module>=1.2,<3; extra == "fast"']
    install(tmp_path, "other-plugins", {"codecs": [f"theirs = {target}"]}, modules=modules, requires=requires)
    monkeypatch.syspath_prepend(tmp_path)
    assert codec_class("pickle").__name__ == "PickleCodec"
    with pytest.raises(UnknownPluginError, match="theirs"):
        codec_class("nobody")
    with pytest.raises(SettingsError) as caught:
        codec_class("theirs")
    assert str(caught.value).startswith(f"codec 'theirs' of other-plugins 1.0 ({target}) ")
    assert re.search(text, str(caught.value)), caught.value


def test_what_is_installed_while_the_process_runs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownPluginError):
        transport_class("late")
    source = "from gather_transports.single import SingleTransport\nclass Late(SingleTransport):\n    name = 'late'\n"
    install(tmp_path, "late", {"transports": ["late = late_plugin:Late"]}, modules={"late_plugin": source})
    invalidate_caches()
    assert transport_class("late").__name__ == "Late"


@pytest.mark.plan(65)
def test_a_distribution_whose_entry_points_are_damaged_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "damaged", {"codecs": ["no equals sign"]})
    install(tmp_path, "whole", {"codecs": ["theirs = gather_core.codec:Codec"]})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(RuntimeWarning, match="the entry points of damaged cannot be read"):
        with pytest.raises(SettingsError, match=r"whole 1\.0"):
            codec_class("theirs")


def test_entry_points_are_not_looked_for_again_for_every_construction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from gather_transports.single import SingleTransport\nclass Often(SingleTransport):\n    name = 'often'\n"
    install(tmp_path, "often", {"transports": ["often = often_plugin:Often"]}, modules={"often_plugin": source})
    monkeypatch.syspath_prepend(tmp_path)
    get_transport("often")
    monkeypatch.setattr(distributions, "offers", None)
    assert get_transport("often").name == "often"
    get_codec("pickle")


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


def test_a_class_whose_trust_is_none_of_the_two_is_not_registered() -> None:
    class Wrong(PlainCodec):
        name = "wrong"
        trust = "data"  # type: ignore[assignment]

    with pytest.raises(SettingsError, match=r"trust must be Trust\.DATA or Trust\.CODE, not 'data'"):
        register_codec("wrong", Wrong)
