"""Settings from files, mappings and variables: which layer wins, what a source may be, and that all ranks hear."""

import os
from argparse import ArgumentParser, Namespace
from collections import UserDict
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from omegaconf import OmegaConf

from fresh_python import run_python
from gather_codecs.messagepack import MessagePackCodec
from gather_core import Gatherer, GatherSettings, Limits, SettingsError, SetupError, UntrustedCodecError, registry
from gather_core.settings_sources import load_settings
from gather_core.settings_variables import SettingTypes
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport
from rank_pool import RankPool
from thread_gatherers import texts

FILE = """
[other]
slot_nbytes = "not ours"

[gather]
slot_nbytes = 2048
overflow = "error"
limits = {num_frames = 2, payload_nbytes = 2}

[gather.profiles.big]
slot_nbytes = 4096
limits = {num_frames = 4, frame_nbytes = 4}

[gather.profiles.other]
slot_nbyte = "not chosen, so not read"
"""


@pytest.fixture(autouse=True)
def no_variables_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GATHER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(FILE)
    return path


def test_without_any_source_the_defaults_hold() -> None:
    assert load_settings() == GatherSettings()


@pytest.mark.parametrize(
    ("profile", "variable", "keywords", "expected"),
    [
        (None, "", {}, 2048),
        ("big", "", {}, 4096),
        ("big", "8192", {}, 8192),
        (None, "8192", {}, 8192),
        ("big", "8192", {"slot_nbytes": 16448}, 16448),
        ("big", "", {"slot_nbytes": 16448}, 16448),
    ],
)
def test_each_layer_beats_those_below_it(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str | None,
    variable: str,
    keywords: dict[str, Any],
    expected: int,
) -> None:
    monkeypatch.setenv("GATHER_SLOT_NBYTES", variable)
    settings = load_settings(file, profile=profile, **keywords)
    assert (settings.slot_nbytes, settings.overflow) == (expected, "error")


@pytest.mark.parametrize("keyword", [{"expansion_ratio": 9}, MappingProxyType({"expansion_ratio": 9})])
def test_limits_are_merged_key_by_key_over_all_layers(
    file: Path, monkeypatch: pytest.MonkeyPatch, keyword: Any
) -> None:
    monkeypatch.setenv("GATHER_LIMITS", '{"frame_nbytes": 7, "payload_nbytes": 7}')
    monkeypatch.setenv("GATHER_LIMITS__FRAME_NBYTES", "8")
    expected = Limits(payload_nbytes=7, num_frames=4, frame_nbytes=8, expansion_ratio=9)
    assert load_settings(file, profile="big", limits=keyword).limits == expected


def test_a_limits_object_replaces_all_limits_below_it(file: Path) -> None:
    assert load_settings(file, limits=Limits(num_frames=9)).limits == Limits(num_frames=9)


def test_file_and_profile_can_be_named_by_variables_and_an_empty_profile_is_none(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATHER_SETTINGS", str(file))
    assert load_settings().slot_nbytes == 2048
    monkeypatch.setenv("GATHER_PROFILE", "big")
    assert load_settings().slot_nbytes == 4096
    assert load_settings(str(file)).slot_nbytes == 4096
    assert load_settings(profile="").slot_nbytes == 2048
    monkeypatch.setenv("GATHER_PROFILE", "")
    assert load_settings().slot_nbytes == 2048


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("codec", "msgpack+zstd: level = 3", "msgpack+zstd:level=3"),
        ("codec", '[{"name": "msgpack"}, {"name": "zstd", "level": 3}]', "msgpack+zstd:level=3"),
        ("transport", '{"name": "gloo"}', "gloo"),
        ("slot_nbytes", "2048", 2048),
        ("overflow", "error", "error"),
        ("timeout_s", "0.5", 0.5),
        ("timeout_s", "7", 7.0),
        ("limits", '{"num_frames": 5}', Limits(num_frames=5)),
        ("tensor_device", "current", "current"),
        ("payload_checksum", "true", True),
        ("payload_checksum", "0", False),
        ("payload_checksum", "auto", "auto"),
    ],
)
def test_a_variable_is_read_as_what_its_setting_takes(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"GATHER_{name.upper()}", text)
    read = getattr(load_settings(), name)
    assert read == value
    assert type(read) is type(value)


def test_every_setting_can_be_a_variable_and_every_limit_too() -> None:
    assert list(SettingTypes.model_fields) == [one.name for one in fields(GatherSettings)]
    limit_types = SettingTypes.model_fields["limits"].annotation.__args__[0]  # type: ignore[union-attr]
    assert list(limit_types.model_fields) == [one.name for one in fields(Limits)]


SETTINGS = {"codec": "msgpack", "slot_nbytes": 2048, "limits": {"num_frames": 5}}
EXPECTED = GatherSettings("msgpack", slot_nbytes=2048, limits=Limits(num_frames=5))


@pytest.mark.parametrize("nest", [lambda table: table, lambda table: {"lr": 1, "gather": table}])
@pytest.mark.parametrize("kind", [dict, UserDict, OmegaConf.create, MappingProxyType, lambda table: Namespace(**table)])
def test_any_mapping_or_namespace_holds_the_settings_or_has_them_below_gather(
    kind: Callable[[Any], Any], nest: Callable[[Any], Any]
) -> None:
    assert load_settings(kind(nest(SETTINGS))) == EXPECTED
    profiles = {**SETTINGS, "slot_nbytes": 4096, "profiles": {"small": {"slot_nbytes": 2048}}}
    assert load_settings(kind(nest(profiles)), profile="small") == EXPECTED


@pytest.mark.parametrize("source", [{"gather": None}, {"profiles": {"empty": None}, "timeout_s": None}, {}])
def test_a_table_that_is_none_is_empty(source: dict[str, Any]) -> None:
    assert load_settings(source, profile="empty" if "profiles" in source else None) == GatherSettings()


def test_omegaconf_resolves_its_interpolations() -> None:
    config = OmegaConf.create(
        {
            "frames": 5,
            "name": "zstd",
            "gather": {
                "codec": [{"name": "msgpack"}, {"name": "${name}", "level": 3}],
                "slot_nbytes": 2048,
                "limits": {"num_frames": "${frames}"},
                "profiles": {"big": {"slot_nbytes": "${gather.sizes.big}"}},
            },
        }
    )
    expected = GatherSettings("msgpack+zstd:level=3", slot_nbytes=2048, limits=Limits(num_frames=5))
    assert load_settings(config) == expected
    assert load_settings(config.gather) == expected
    with pytest.raises(SettingsError, match=r"DictConfig \[gather.profiles.big\]: slot_nbytes cannot be read: Interp"):
        load_settings(config, profile="big")


def test_a_value_that_omegaconf_misses_is_named() -> None:
    config = OmegaConf.create({"gather": {"lr": "???", "slot_nbytes": "???", "codec": {"name": "???"}}})
    with pytest.raises(SettingsError) as caught:
        load_settings(config)
    for key in ("lr", "slot_nbytes", "codec"):
        assert f"the given DictConfig [gather]: {key} cannot be read: MissingMandatoryValue" in str(caught.value)


def test_arguments_that_were_not_given_leave_it_to_the_layer_below(file: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--codec")
    parser.add_argument("--slot-nbytes", type=int)
    arguments = parser.parse_args(["--codec", "msgpack"])
    assert load_settings(arguments) == load_settings(vars(arguments)) == GatherSettings("msgpack")
    assert load_settings({**vars(arguments), "limits": {"num_frames": None}}) == GatherSettings("msgpack")


def test_a_keyword_that_is_none_is_a_value() -> None:
    assert load_settings({"timeout_s": 5}, timeout_s=None).timeout_s is None
    with pytest.raises(SettingsError, match=r"keywords: codec must be a spec string or a Codec object, not None"):
        load_settings(codec=None)


def test_settings_that_are_one_object_are_a_source_too(monkeypatch: pytest.MonkeyPatch) -> None:
    source = GatherSettings(MessagePackCodec(), timeout_s=timedelta(minutes=1), tensor_device=lambda tensor: tensor)
    assert load_settings(source) == source
    monkeypatch.setenv("GATHER_LIMITS__NUM_FRAMES", "5")
    assert load_settings(source, slot_nbytes=2048).limits == Limits(num_frames=5)


def test_keywords_may_be_objects() -> None:
    codec, device = MessagePackCodec(), lambda tensor: tensor
    settings = load_settings(codec=codec, timeout_s=timedelta(minutes=1), tensor_device=device, group=object())
    assert settings == GatherSettings(codec, timeout_s=timedelta(minutes=1), tensor_device=device)


@pytest.mark.parametrize(
    "codec", ["msgpack+zstd:level=3", "msgpack+zstd: level = 3", [{"name": "msgpack"}, {"level": 3, "name": "zstd"}]]
)
def test_a_spec_string_and_its_table_form_are_the_same(codec: object) -> None:
    assert load_settings({"codec": codec}).codec == "msgpack+zstd:level=3"


def test_a_gatherer_uses_and_shows_the_settings(file: Path) -> None:
    keywords: dict[str, Any] = {"transport": "single", "codec": "msgpack", "limits": Limits()}
    with Gatherer.from_settings(file, profile="big", **keywords) as gatherer:
        assert gatherer.settings == load_settings(file, profile="big", **keywords)
        assert (gatherer.slot_nbytes, gatherer.codec.spec, gatherer.transport.spec) == (4096, "msgpack", "single")
        assert gatherer.all_gather(1) == [1]


def test_group_and_decode_options_reach_the_gatherer() -> None:
    seen: list[object] = []

    def device(tensor: object) -> object:
        seen.append(tensor)
        return tensor

    def body(member: ThreadRank) -> object:
        import torch

        with Gatherer.from_settings({"transport": "threads"}, group=member, tensor_device=device) as gatherer:
            return [int(one) for one in gatherer.all_gather(torch.tensor(member.rank))]

    assert ThreadGroup(2).run(body) == [[0, 1]] * 2
    assert len(seen) == 4


def construct_all(sources: list[Any], **keywords: Any) -> list[Any]:
    """The errors of all ranks, each with its own source; each rank then constructs a Gatherer that works."""

    def body(member: ThreadRank) -> object:
        with pytest.raises(SetupError) as caught:
            Gatherer.from_settings(sources[member.rank], group=member, **keywords)
        with Gatherer.from_settings(transport="threads", group=member, timeout_s=5) as gatherer:
            assert gatherer.all_gather(member.rank) == list(range(len(sources)))
        return caught.value

    return list(ThreadGroup(len(sources)).run(body))


class UnreadableMapping(UserDict[str, object]):
    """A config object with a bug of its own."""

    def __iter__(self) -> Any:
        raise ZeroDivisionError("no keys today")


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ({"slot_nbyte": 2048}, "unknown key slot_nbyte = 2048. Did you mean 'slot_nbytes'?"),
        ({"codec": "msgpak"}, "Did you mean 'msgpack'?"),
        ("/no/such/job.toml", "/no/such/job.toml"),
        (5, "source must be"),
        (UnreadableMapping(), "ZeroDivisionError: no keys today"),
    ],
)
def test_what_is_wrong_on_one_rank_is_raised_on_all_naming_it_and_the_next_gatherer_works(
    source: Any, fragment: str
) -> None:
    outcomes = construct_all([{}, source, {}], transport="threads", timeout_s=5)
    (text,) = texts(outcomes)
    assert text.startswith("rank 1 could not set up: SettingsError: ")
    assert fragment in text
    assert [type(outcome.__cause__) for outcome in outcomes] == [type(None), SettingsError, type(None)]


class BrokenTransport(ThreadsTransport):
    """A plug-in with a bug in its constructor."""

    name = "broken_in_test"

    def __init__(self) -> None:
        raise RuntimeError("no driver")


def test_a_plugin_whose_constructor_raises_anything_is_raised_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry._transports, "registered", {"broken_in_test": BrokenTransport})
    (text,) = texts(construct_all([{"transport": "threads"}, {"transport": "broken_in_test"}], timeout_s=5))
    assert text.endswith("the given dict: transport = 'broken_in_test': 'broken_in_test': RuntimeError: no driver")


def test_what_is_right_in_broken_settings_still_finds_the_others() -> None:
    broken = {"gather": {"transport": "threads", "timeout_s": 5, "overflow": "grow", "profiles": {}}}
    (text,) = texts(construct_all([{"transport": "threads", "timeout_s": 5}, broken]))
    assert text.startswith("rank 1 could not set up: SettingsError: the given dict [gather]: overflow must be")


def test_settings_that_differ_between_ranks_are_an_error_on_all() -> None:
    same = {"transport": "threads", "timeout_s": 5}
    (text,) = texts(construct_all([same, same, {**same, "slot_nbytes": 4096}]))
    assert text.startswith("rank 2 could not set up: slot_nbytes is 4096")


@pytest.mark.parametrize("transport", ["auto", "gloo", "single", "glo"])
def test_without_a_process_group_it_is_a_setup_error_too(transport: str) -> None:
    with pytest.raises(SetupError, match="unknown key codecs = 1") as caught:
        Gatherer.from_settings({"codecs": 1}, transport=transport)
    assert isinstance(caught.value.__cause__, SettingsError)


def test_a_group_that_only_the_unreadable_file_would_explain_does_not_hide_why() -> None:
    with pytest.raises(SetupError, match=r"settings file /no/such/job\.toml cannot be read"):
        Gatherer.from_settings("/no/such/job.toml", group=ThreadGroup(1).member(0))


def test_a_warning_that_is_an_error_reaches_all_ranks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATHER_CODECS", "msgpack")  # warnings are errors in this suite
    with pytest.raises(SetupError, match=r"nothing reads the variable GATHER_CODECS\. Did you mean 'GATHER_CODEC'"):
        Gatherer.from_settings(transport="single")


@pytest.mark.parametrize("keywords", [{}, {"codec": "pickle+zstd"}])
def test_no_file_or_keyword_lifts_the_ban_on_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any]
) -> None:
    path = tmp_path / "job.toml"
    path.write_text('[gather]\ncodec = "pickle"\n')
    monkeypatch.setenv("GATHER_FORBID_CODE", "1")
    with pytest.raises(SetupError, match="GATHER_FORBID_CODE forbids") as caught:
        Gatherer.from_settings(path, **keywords)
    assert isinstance(caught.value.__cause__, UntrustedCodecError)
    Gatherer.from_settings(path, codec="msgpack").close()


def test_a_bad_variable_or_a_missing_file_on_one_node_is_raised_on_all(pool: RankPool) -> None:
    """Nodes differ in their variables; threads could not."""

    def body(rank: int, world_size: int, variables: dict[str, str]) -> list[str]:
        seen = []
        for name, text in variables.items():
            if rank == 1:
                os.environ[name] = text
            with pytest.raises(SetupError) as caught:
                Gatherer.from_settings(codec="msgpack", timeout_s=20)
            seen.append(str(caught.value))
            assert isinstance(caught.value.__cause__, SettingsError) == (rank == 1)
            os.environ.pop(name, None)
        with Gatherer.from_settings(codec="msgpack", timeout_s=20) as gatherer:
            assert gatherer.all_gather(rank) == list(range(world_size))
        return seen

    variables = {"GATHER_SLOT_NBYTES": "16k", "GATHER_SETTINGS": "no-such.toml", "GATHER_TRANSPORT": "glo"}
    first, second, third = pool.values(3, body, variables)
    assert first == second == third
    assert len(first) == 3
    for text, (name, value) in zip(first, variables.items(), strict=True):
        assert text.startswith("rank 1 could not set up: SettingsError: ")
        assert name in text
        assert value in text


def test_a_group_that_cannot_be_joined_without_the_missing_file_is_raised_on_all(pool: RankPool) -> None:
    """The group is of a transport that only the file names; the ranks of the default group hear of the file."""

    def body(rank: int, world_size: int) -> str:
        source, group = ("no-such.toml", object()) if rank == 1 else (None, None)
        with pytest.raises(SetupError) as caught:
            Gatherer.from_settings(source, group=group, codec="msgpack", timeout_s=20)
        return str(caught.value)

    first, second = pool.values(2, body)
    assert first == second
    assert first.startswith("rank 1 could not set up: SettingsError: settings file no-such.toml cannot be read")


def test_keywords_alone_never_import_pydantic() -> None:
    loaded = "import sys; print('pydantic' in sys.modules)"
    construct = "from gather_core import Gatherer\nGatherer{}(transport='single').close()\n"
    assert run_python(construct.format("") + loaded) == "False"
    assert run_python(construct.format(".from_settings") + loaded) == "True"


@pytest.mark.parametrize(
    "settings",
    [
        GatherSettings(),
        GatherSettings("msgpack+zstd:level=3", "gloo", 4096, "error", 0.25, Limits(num_frames=7), "current", True),
        GatherSettings("pickle", timeout_s=1e-7, payload_checksum=False),
    ],
)
def test_settings_survive_as_toml(tmp_path: Path, settings: GatherSettings) -> None:
    path = tmp_path / "written.toml"
    path.write_text(settings.to_toml())
    assert load_settings(path) == settings


def test_a_timedelta_is_written_as_seconds() -> None:
    assert "timeout_s = 90.0\n" in GatherSettings(timeout_s=timedelta(seconds=90)).to_toml()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (GatherSettings(MessagePackCodec()), "codec is an object"),
        (GatherSettings(tensor_device=lambda tensor: tensor), "tensor_device is an object"),
        (GatherSettings(slot_nbytes=5), "slot_nbytes must be"),
    ],
)
def test_what_a_file_cannot_hold_is_not_written(settings: GatherSettings, name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings.to_toml()
