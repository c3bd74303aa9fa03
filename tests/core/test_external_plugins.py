"""A codec and a transport that live outside the project, used as their users would: by name, registered, as objects."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fake_distribution import OUTSIDE, install_outside
from fresh_python import run_python
from gather_core import Codec, Transport, registry
from gather_core.testing.codec_contract import CodecContract
from gather_core.testing.transport_contract import TransportContract
from rank_pool import RankPool

IDS = list(range(5000))


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`gather-outside` is installed in this process."""
    folder = install_outside(tmp_path / "site")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(registry._codecs, "registered", {})
    yield folder
    for path in OUTSIDE.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.usefixtures("outside")
class TestReversedJsonCodec(CodecContract):
    def make_codec(self) -> Codec:
        codec: Codec = importlib.import_module("outside_codec").ReversedJsonCodec()
        return codec

    def objects(self) -> Sequence[object]:
        return [None, True, 0, -(2**70), 0.1, -0.0, float("nan"), "é", [], {}, [{"": [1, 2.5, None]}], ["y" * 20_000]]

    def refused(self) -> Sequence[object]:
        return [(1,), {1: "a key"}, b"bytes", [{"deep": (1,)}]]


@pytest.mark.usefixtures("outside")
class TestStarTransport(TransportContract):
    def make_transport(self) -> Transport:
        transport: Transport = importlib.import_module("outside_transport").StarTransport()
        return transport


def gather_with_codec(how: str) -> list[object]:
    """Gathers on two threads, in this interpreter, with the codec given in that way; returns what rank 1 got."""
    from gather_core import Gatherer, register_codec
    from gather_transports.threads import ThreadGroup, ThreadRank

    codec: Any = how
    if how in ("object", "register"):
        codec = importlib.import_module("outside_codec").ReversedJsonCodec()
    if how == "register":
        register_codec("reversed_json", type(codec))
        codec = "reversed_json"

    def on_rank(member: ThreadRank) -> list[object]:
        settings: dict[str, Any] = {"transport": "threads", "timeout_s": 20, "codec": codec}
        if how == "settings":
            settings["codec"] = [{"name": "reversed_json", "sort_keys": True}, {"name": "zstd"}]
            gatherer = Gatherer.from_settings(settings, group=member)
        else:
            gatherer = Gatherer(**settings, group=member)
        with gatherer:
            return [gatherer.codec.spec, *gatherer.all_gather({"rank": member.rank, "ids": list(range(5000))})]

    outcome = ThreadGroup(2).run(on_rank)[1]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@pytest.mark.parametrize(
    ("how", "spec"),
    [
        ("reversed_json", "reversed_json"),
        ("reversed_json:sort_keys=true+zstd:level=3", "reversed_json:sort_keys=true+zstd:level=3"),
        ("settings", "reversed_json:sort_keys=true+zstd"),
        ("register", "reversed_json"),
        ("object", "reversed_json"),
    ],
)
def test_a_codec_from_outside_is_used_end_to_end(outside: Path, how: str, spec: str) -> None:
    assert gather_with_codec(how) == [spec, {"rank": 0, "ids": IDS}, {"rank": 1, "ids": IDS}]


def gather_over_transport(rank: int, world_size: int, folder: str, how: str) -> list[object]:
    """Gathers on one rank of a process group, with the transport given in that way."""
    from gather_core import Gatherer, register_transport, registry

    sys.path.insert(0, folder)
    try:
        transport: Any = how
        if how in ("object", "register"):
            transport = importlib.import_module("outside_transport").StarTransport()
        if how == "register":
            register_transport("star", type(transport))
            transport = "star"
        if how == "settings":
            settings = {
                "gather": {"profiles": {"here": {"transport": {"name": "star", "backlog": 9}, "timeout_s": 20}}}
            }
            gatherer = Gatherer.from_settings(settings, profile="here")
        else:
            gatherer = Gatherer("pickle", transport, timeout_s=20)
        with gatherer:
            small = gatherer.all_gather(rank)
            large = gatherer.all_gather(bytes([rank]) * 100_000)
            return [gatherer.transport.spec, small, [(part[0], len(part)) for part in large]]
    finally:
        sys.path.remove(folder)
        registry._transports.registered.clear()
        sys.modules.pop("outside_transport", None)


@pytest.mark.parametrize(
    ("how", "spec"),
    [
        ("star", "star"),
        ("star:backlog=7", "star:backlog=7"),
        ("settings", "star:backlog=9"),
        ("register", "star"),
        ("object", "star"),
    ],
)
def test_a_transport_from_outside_is_used_end_to_end(pool: RankPool, tmp_path: Path, how: str, spec: str) -> None:
    folder = install_outside(tmp_path) if how not in ("object", "register") else OUTSIDE
    expected = [spec, [0, 1], [(0, 100_000), (1, 100_000)]]
    assert pool.values(2, gather_over_transport, str(folder), how) == [expected] * 2


def test_a_fresh_interpreter_finds_what_is_installed_and_imports_it_when_it_is_used(outside: Path) -> None:
    script = (
        "import sys\n"
        "from gather_core import Gatherer\n"
        "assert not [name for name in sys.modules if name.startswith('outside')]\n"
        "with Gatherer('reversed_json+zstd', 'single') as gatherer:\n"
        "    print(gatherer.all_gather([1, 2]), gatherer.codec.spec)\n"
        "print([name for name in sys.modules if name.startswith('outside')])"
    )
    assert run_python(script) == "[[1, 2]] reversed_json+zstd\n['outside_codec']"
