"""What from_settings says of wrong settings: the place, the key, the value, and the nearest known name."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from gather_core import GatherSettings, SettingsError, UnknownPluginError
from gather_core.settings_sources import load_settings


@pytest.fixture(autouse=True)
def no_variables_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GATHER_")]:
        monkeypatch.delenv(name)


def message(*arguments: Any, **keywords: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(*arguments, **keywords)
    return str(caught.value)


BAD_TABLES: list[tuple[str, str]] = [
    ("slot_nbyte = 5", "unknown key slot_nbyte = 5. Did you mean 'slot_nbytes'?"),
    ("Codec = 'raw'", "unknown key Codec = 'raw'. Did you mean 'codec'?"),
    ("profile = {}", "unknown key profile = {}. Did you mean 'profiles'?"),
    ("profiles = 5", "profiles must be a table, not 5"),
    ("zebra = 1", "unknown key zebra = 1. Known: codec, key, limits, "),
    ("group = 1", "unknown key group = 1."),
    ("limits = {num_frame = 1}", "unknown key limits.num_frame = 1. Did you mean 'num_frames'?"),
    ("limits = {num_frames = 0}", "limits.num_frames must be an int of at least 1, not 0"),
    ("limits = {num_frames = 1.0}", "limits.num_frames must be an int of at least 1, not 1.0"),
    ("limits = {num_frames = true}", "limits.num_frames must be an int of at least 1, not True"),
    ("limits = {num_frames = '5'}", "limits.num_frames must be an int of at least 1, not '5'"),
    ("limits = 5", "limits must be a table or a Limits object, not 5"),
    ("slot_nbytes = '16k'", "slot_nbytes must be an int of at least 1024, not '16k'"),
    ("slot_nbytes = '16384'", "slot_nbytes must be an int of at least 1024, not '16384'"),
    ("slot_nbytes = 16384.0", "slot_nbytes must be an int of at least 1024, not 16384.0"),
    ("slot_nbytes = true", "slot_nbytes must be an int of at least 1024, not True"),
    ("slot_nbytes = 1023", "slot_nbytes must be an int of at least 1024, not 1023"),
    ("slot_nbytes = [2048]", "slot_nbytes must be an int of at least 1024, not [2048]"),
    ("timeout_s = '5'", "timeout_s must be seconds or a timedelta, greater than 0 and at most 1e9, not '5'"),
    ("timeout_s = inf", "timeout_s must be seconds or a timedelta, greater than 0 and at most 1e9, not inf"),
    ("timeout_s = 07:32:00", "timeout_s must be seconds or a timedelta"),
    ("overflow = 'eror'", 'overflow must be "second_round" or "error", not \'eror\''),
    ("payload_checksum = 'yes'", "payload_checksum must be True, False or \"auto\", not 'yes'"),
    ("tensor_device = 'cuda:1'", 'tensor_device must be "cpu", "current" or a callable, not \'cuda:1\''),
    ("codec = 5", "codec must be a spec string or a Codec object, not 5"),
    ("codec = 'msgpak'", "codec = 'msgpak': no codec is named 'msgpak'. Did you mean 'msgpack'?"),
    ("codec = 'msgpack+'", "codec = 'msgpack+': expected a name in lower case at the end"),
    ("codec = 'zstd'", "codec = 'zstd': 'zstd' follows another codec"),
    ("codec = 'msgpack+zstd:levl=3'", "it takes: level, min_nbytes, max_ratio. Did you mean 'level'?"),
    ("codec = 'msgpack+zstd:level=99'", "codec = 'msgpack+zstd:level=99': 'zstd:level=99': "),
    ("codec = []", "codec must be a spec string or a list of tables"),
    ("codec = ['msgpack']", "codec[0] must be a table"),
    ("codec = {nam = 'msgpack'}", "codec = {'nam': 'msgpack'} has no name. Did you mean 'name' with 'nam'?"),
    ("codec = [{name = 'msgpack'}, {level = 3}]", "codec[1] = {'level': 3} has no name."),
    (
        "codec = [{name = 'msgpack'}, {name = 'zstd', levl = 3}]",
        "it takes: level, min_nbytes, max_ratio. Did you mean 'level'?",
    ),
    ("codec = [{name = 'msgpack'}, {name = 'zst'}]", "no codec is named 'zst'. Did you mean 'zstd'?"),
    ("codec = {name = 'msgpack+zstd'}", "codec.name must be of a-z, 0-9 and _ and start with a letter, not 'msgpack+z"),
    ("codec = {name = 5}", "codec.name must be of a-z"),
    ("codec = [{name = 'raw', a = [1]}]", "codec[0].a must be a bool, int, float or str, not [1]"),
    ("codec = [{name = 'raw', a = 2020-01-01}]", "codec[0].a must be a bool, int, float or str, not datetime"),
    ("codec = [{name = 'raw', 'a=1,b' = 1}]", "the key of an option must be of letters, digits and _, not 'a=1,b'"),
    ("transport = 'glo'", "transport = 'glo': no transport is named 'glo'. Did you mean 'gloo'?"),
    ("transport = 'auto:x=1'", "transport = 'auto:x=1': transport 'auto' stands alone"),
    ("transport = [{name = 'gloo', speed = 1}]", "transport = 'gloo:speed=1': 'gloo': "),
]


@pytest.mark.parametrize("table", ["gather", "gather.profiles.big"])
@pytest.mark.parametrize(("line", "fragment"), BAD_TABLES)
def test_what_is_wrong_in_a_file_is_said_with_table_key_and_value(
    tmp_path: Path, table: str, line: str, fragment: str
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"[{table}]\n{line}\n")
    if line.startswith("profile") and "big" in table:
        fragment = f"unknown key {line}. Known: codec"
    profile = "big" if "big" in table else None
    text = message(path, profile=profile)
    assert text.startswith(f"{path} [{table}]: ")
    assert fragment in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLOT_NBYTES": "16k"}, "slot_nbytes must be an int of at least 1024, not '16k'"),
        ({"SLOT_NBYTES": "5"}, "slot_nbytes must be an int of at least 1024, not 5"),
        ({"TIMEOUT_S": "soon"}, "timeout_s must be seconds or a timedelta"),
        ({"TIMEOUT_S": "nan"}, "timeout_s must be seconds or a timedelta"),
        ({"PAYLOAD_CHECKSUM": "maybe"}, "payload_checksum must be True, False or \"auto\", not 'maybe'"),
        ({"LIMITS__NUM_FRAMES": "x"}, "limits.num_frames must be an int of at least 1, not 'x'"),
        ({"LIMITS": "5"}, "limits must be a table or a Limits object, not '5'"),
        ({"LIMITS": "{bad"}, "limits must be a table or a Limits object, not '{bad'"),
        ({"LIMITS": '{"num_frame": 5}'}, "unknown key limits.num_frame = 5. Did you mean 'num_frames'?"),
        ({"LIMITS": '{"num_frames": true}'}, "limits.num_frames must be an int of at least 1, not True"),
        ({"CODEC": "msgpak"}, "codec = 'msgpak': no codec is named 'msgpak'. Did you mean 'msgpack'?"),
        ({"CODEC": "null"}, "codec = 'null': no codec is named 'null'"),
        ({"CODEC": "5"}, "codec = '5': expected a name"),
        ({"CODEC": '[{"nam": "raw"}]'}, "codec[0] = {'nam': 'raw'} has no name."),
        ({"CODEC": "[raw]"}, "codec = '[raw]': expected a name"),
        ({"TRANSPORT": "glo"}, "transport = 'glo': no transport is named 'glo'. Did you mean 'gloo'?"),
    ],
)
def test_what_is_wrong_in_a_variable_is_said_with_its_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(f"GATHER_{name}", text)
    assert message().startswith(f"variable GATHER_{next(iter(variables))}: {expected}")


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"slot_nbyte": 5}, "keywords: unknown key slot_nbyte = 5. Did you mean 'slot_nbytes'?"),
        ({"grup": 5}, "keywords: unknown key grup = 5. Did you mean 'group'?"),
        ({"slot_nbytes": None}, "keywords: slot_nbytes must be an int"),
        ({"limits": None}, "keywords: limits must be a table or a Limits object, not None"),
        ({"limits": {"frames": 1}}, "keywords: unknown key limits.frames = 1. Did you mean 'num_frames'?"),
        ({"codec": object}, "keywords: codec must be a spec string or a Codec object, not <class 'object'>"),
        ({"profile": 5}, "profile must be a str or None, not 5"),
    ],
)
def test_what_is_wrong_in_a_keyword_is_said(keywords: dict[str, Any], expected: str) -> None:
    assert message(**keywords).startswith(expected)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("[gather]\nslot_nbytes = \n", "is not TOML: Invalid value (at line 2, column 15)"),
        ("[gather]\ncodec = 'raw'\ncodec = 'raw'\n", "(at line 3, "),
        ("", "has no table [gather]. Its top level has: nothing"),
        ("codec = 'raw'\n", "has no table [gather]. Its top level has: codec"),
        ("[gater]\n", "has no table [gather]. Did you mean 'gater'?"),
        ("gather = 5\n", ": gather must be a table, not 5"),
        ("\udcff", "cannot be read on this rank, as "),
    ],
)
def test_a_file_that_holds_no_settings_is_named_with_the_line(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    told = message(path)
    assert str(path) in told
    assert fragment in told


def test_a_missing_file_is_named_as_this_rank_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = message("no.toml")
    assert told.startswith(f"settings file no.toml cannot be read on this rank, as '{tmp_path}/no.toml': FileNotFound")
    assert "IsADirectoryError" in message(tmp_path)
    assert "FileNotFoundError" in message("")
    assert "ValueError" in message("a\0b")
    monkeypatch.setenv("GATHER_SETTINGS", "other.toml")
    assert message().startswith("settings file other.toml (named by GATHER_SETTINGS) cannot be read on this rank")


def test_an_unknown_profile_is_named_with_the_nearest_and_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[gather.profiles.big]\n[gather.profiles.debug]\n")
    told = f"{path} [gather.profiles]: no profile is named 'debugg'. Did you mean 'debug'? Known: big, debug"
    assert message(path, profile="debugg") == told
    monkeypatch.setenv("GATHER_PROFILE", "bigg")
    told = f"{path} [gather.profiles]: no profile is named 'bigg' (named by GATHER_PROFILE). Did you mean 'big'?"
    assert message(path).startswith(told)
    told = "the defaults (GATHER_SETTINGS is not set) [profiles]: no profile is named 'bigg'. Known: none"
    assert message(profile="bigg") == told
    assert "[profiles.x]: unknown key slot_nbyte" in message({"profiles": {"x": {"slot_nbyte": 5}}}, profile="x")
    assert "[profiles]: x must be a table, not 5" in message({"profiles": {"x": 5}}, profile="x")


@pytest.mark.parametrize("source", [None, GatherSettings(), {"codec": "raw"}])
def test_a_profile_named_by_a_variable_is_a_warning_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    monkeypatch.setenv("GATHER_PROFILE", "big")
    with pytest.warns(UserWarning, match="GATHER_PROFILE=big has no effect: there are no profiles in the "):
        load_settings(source)


def test_settings_beside_the_table_that_holds_them_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("codec = 'msgpack'\n[limits]\n[gather]\n[other]\n")
    assert message(path) == f"{path}: codec, limits must stand in [gather], not beside it"
    assert "slot_nbytes must stand in [gather]" in message({"gather": {}, "slot_nbytes": 1024, "lr": 1})
    assert "codec must stand in [gather]" in message(Namespace(gather_slot_nbytes=2048, codec="raw"))


def test_arguments_of_a_program_are_settings_where_their_names_say_so() -> None:
    arguments = Namespace(lr=0.1, gather_codec="raw", gather_slot_nbytes=None, gather_limits={"num_frames": 3})
    for source in (arguments, vars(arguments)):
        settings = load_settings(source)
        assert (settings.codec, settings.slot_nbytes, settings.limits.num_frames) == ("raw", 16384, 3)
    told = "the given Namespace (keys with gather_*): unknown key slot_nbyte = 1. Did you mean 'slot_nbytes'?"
    assert message(Namespace(gather_slot_nbyte=1)).startswith(told)


def test_of_many_problems_the_first_are_told() -> None:
    lines = message({f"key_{number}": number for number in range(12)}).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "and 7 more; settings among others stand below 'gather'"


def test_everything_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATHER_TIMEOUT_S", "soon")
    told = message({"slot_nbyte": 5, "codec": "msgpak"}, profile="no", overflow="grow")
    places = [line.partition(":")[0] for line in told.splitlines()]
    assert sorted(places) == [
        *("keywords", "the given dict", "the given dict", "the given dict [profiles]", "variable GATHER_TIMEOUT_S")
    ]


def test_a_setting_that_is_wrong_below_is_said_although_it_is_overridden() -> None:
    assert message({"slot_nbytes": 5}, slot_nbytes=2048).startswith("the given dict: slot_nbytes must be")


def test_the_cause_of_a_bad_name_or_file_is_kept() -> None:
    for source, cause in (({"codec": "msgpak"}, UnknownPluginError), ("/no/such.toml", FileNotFoundError)):
        with pytest.raises(SettingsError) as caught:
            load_settings(source)
        assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize("value", ["x" * 100_000, ["x"] * 100_000])
def test_a_huge_value_does_not_fill_the_log(value: object) -> None:
    assert len(message({"slot_nbyte": value})) < 1000


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("GATHER_CODECS", "GATHER_CODEC"),
        ("GATHER_codec", "GATHER_CODEC"),
        ("GATHER_LIMITS__NUM_FRAME", "GATHER_LIMITS__NUM_FRAMES"),
        ("GATHER_LIMITS_NUM_FRAMES", "GATHER_LIMITS__NUM_FRAMES"),
        ("GATHER_PORFILE", "GATHER_PROFILE"),
        ("GATHER_FORBIDCODE", "GATHER_FORBID_CODE"),
    ],
)
def test_an_unknown_variable_is_warned_of_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    monkeypatch.setenv(name, "hush")
    with pytest.warns(UserWarning, match=f"nothing reads the variable {name}. Did you mean '{near}'") as warned:
        load_settings()
    assert "hush" not in str(warned[0].message)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("GATHER_FORBID_CODE", "0"), ("GATHER_WIRE", "native"), ("GATHER_HOST_ID", "a"), ("gather_codec", "no")),
        *(("GATHER_SLOT_NBYTES", ""), ("GATHER_UNKNOWN", ""), ("OTHER_GATHER_CODEC", "no")),
    ],
)
def test_other_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    assert load_settings().slot_nbytes == 16384
