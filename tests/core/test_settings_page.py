"""What docs/settings.md shows works as it says there."""

import json
import os
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from gather_core import Gatherer, GatherSettings, Limits, SetupError
from gather_core.settings_sources import load_settings
from page_blocks import blocks_of

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def blocks(language: str) -> list[str]:
    return [block.text for block in blocks_of(PAGE) if block.language == language]


@pytest.fixture(autouse=True)
def folder_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GATHER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (file,) = blocks("toml")
    Path("job.toml").write_text(file)


LIMITS = Limits(payload_nbytes=1_000_000_000)


def test_the_file_holds_what_it_shows() -> None:
    plain = GatherSettings("msgpack+zstd:level=3", slot_nbytes=32768, timeout_s=120, limits=LIMITS)
    assert load_settings("job.toml") == plain
    debug = GatherSettings(
        "msgpack+zstd:level=1",
        slot_nbytes=32768,
        timeout_s=120,
        overflow="error",
        limits=Limits(payload_nbytes=1_000_000_000, num_frames=1000),
    )
    assert load_settings("job.toml", profile="debug") == debug


def test_the_variables_do_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = blocks("bash")
    exports = re.findall(r"^export (\w+)=(\S+)$", script, re.MULTILINE)
    assert len(exports) == len(script.splitlines())
    for name, text in exports:
        monkeypatch.setenv(name, text)
    settings = load_settings()
    assert (settings.slot_nbytes, settings.limits.num_frames, settings.overflow) == (65536, 500, "error")
    assert load_settings(slot_nbytes=131072).slot_nbytes == 131072


def test_the_table_of_limits_is_complete_and_has_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE.read_text().split("## Limits")[1], re.MULTILINE)
    assert {name: int(default) for name, default in rows} == asdict(Limits())


def test_the_table_of_settings_is_complete_and_has_the_defaults() -> None:
    table = PAGE.read_text().split("## Who wins")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \|", table, re.MULTILINE))
    assert rows.keys() == {field.name for field in fields(GatherSettings)}
    defaults = GatherSettings()
    for name in ("codec", "transport", "slot_nbytes", "overflow", "tensor_device", "payload_checksum"):
        assert json.loads(rows[name]) == getattr(defaults, name)


def test_the_error_is_the_one_it_shows() -> None:
    (text,) = blocks("text")
    with pytest.raises(SetupError) as caught:
        Gatherer.from_settings({"slot_nbyte": 65536})
    assert str(caught.value) == text.strip()
