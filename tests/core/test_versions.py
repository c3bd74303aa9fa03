"""Versions of formats: ranks with different ones are told in round 0, and the pages have the right numbers."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gather_codecs.messagepack import MessagePackCodec
from gather_codecs.raw import RawCodec
from gather_codecs.zstandard_frames import ZstdCodec
from gather_core import Codec, Gatherer, SetupError, rendezvous
from gather_core.handshake import Fact, compare_facts
from gather_core.registry import get_codec
from gather_core.slot import WIRE_VERSION
from gather_core.transport import GroupContext
from gather_transports.threads import ThreadGroup, ThreadRank
from golden import files
from golden.write import version_today

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "versions.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class SecondRaw(RawCodec):
    """A later release's."""

    wire_version = 2


@pytest.mark.parametrize(
    ("codecs", "text"),
    [
        ([RawCodec(), SecondRaw()], 'codec is "raw wire 2", but rank 0 has "raw"'),
        ([ZstdCodec(SecondRaw()), ZstdCodec(RawCodec())], 'codec is "raw+zstd", but rank 0 has "raw wire 2+zstd"'),
    ],
)
def test_ranks_whose_codecs_have_other_wire_versions_are_told_before_the_first_byte(
    codecs: list[Codec], text: str
) -> None:
    def body(member: ThreadRank) -> None:
        with pytest.raises(SetupError, match="^rank 1 could not set up: " + re.escape(text)):
            Gatherer(codecs[member.rank], "threads", group=member, timeout_s=10)

    assert ThreadGroup(2).run(body) == [None, None]


def test_ranks_with_other_wire_versions_of_slots_are_told_before_the_first_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fact_of = rendezvous._fact

    def fact_of_another_release(settings: Any, context: GroupContext, *plugins: Any) -> Fact:
        fact = fact_of(settings, context, *plugins)
        assert fact["wire"] == WIRE_VERSION
        return fact | {"wire": 1 + context.rank}

    def body(member: ThreadRank) -> None:
        with pytest.raises(SetupError, match=r"^rank 1 could not set up: wire is 2, but rank 0 has 1$"):
            Gatherer("raw", "threads", group=member, timeout_s=10)

    monkeypatch.setattr(rendezvous, "_fact", fact_of_another_release)
    assert ThreadGroup(2).run(body) == [None, None]


def test_the_messages_on_the_page_are_those_that_ranks_get() -> None:
    wire, codec = re.findall(r"^rank 1 could not set up: (.*)$", PAGE, re.MULTILINE)
    second = type("SecondMsgpack", (MessagePackCodec,), {"wire_version": 2, "fingerprint": Codec.fingerprint})()
    facts = [{"wire": 1, "codec": get_codec("msgpack").fingerprint()}, {"wire": 2, "codec": second.fingerprint()}]
    assert compare_facts(facts) == {"failures": {1: f"{wire}; {codec}"}}


def test_the_page_has_every_format_with_its_version() -> None:
    rows = re.findall(r"^\| (?:table and )?frames of `\+?(\w+)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert {name: int(version) for name, version in rows} == {
        name: version_today(name) for name in files.names() - {"slot", "seed"}
    }
    assert f"| slots | {WIRE_VERSION} | byte 36 " in PAGE
    assert f"| 36 | version, u8 | {WIRE_VERSION} |" in (ROOT / "docs" / "wire.md").read_text()


def test_the_page_has_the_supported_range_of_the_project() -> None:
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(PROJECT["dependencies"]), re.MULTILINE))
    python = PROJECT["requires-python"].removeprefix(">=")
    text = f"Python {python} or newer and torch {lowest['torch']} or newer are supported, numpy from {lowest['numpy']}."
    assert text in PAGE
