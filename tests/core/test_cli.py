"""The command line: its commands, also those of other distributions, and `gather plugins`."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fake_distribution import install, install_outside
from gather_core import __version__
from gather_core.command_group import build_app
from gather_core.plugin_list import PluginInfo, list_plugins
from gather_core.plugin_table import print_plugins

COMMANDS = """
import typer

def hello(name: str = "you"):
    "Says [hello]."
    print("hello", name)

several = typer.Typer(help="Several commands.")
several.command("one")(hello)
several.command("two")(hello)

def untypeable(thing: "Missing"): ...
"""


def gather(*arguments: str, path: Sequence[Path] = (), env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Runs the command line in a fresh interpreter; returns exit status, stdout and stderr."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *sys.path]), "COLUMNS": "200"}
    environment.update(env or {})
    command = [sys.executable, "-m", "gather_core", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout, done.stderr


def invoke(*arguments: str) -> tuple[int, str]:
    """Runs the command line in this process; returns exit status and output."""
    result = CliRunner().invoke(build_app(), arguments, env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, **points: Sequence[str]) -> None:
    install(
        folder, "other-plugins", points, modules={"their_commands": COMMANDS}, requires=["absent-thing; extra=='x'"]
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "their_commands", raising=False)


def find(name: str, kind: str = "codec") -> PluginInfo:
    [found] = [info for info in list_plugins(name) if info.kind == kind]
    return found


def test_help_names_all_commands_and_imports_nothing_heavy() -> None:
    status, out, err = gather("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert status == 0
    assert all(f" {name} " in out for name in ("bench", "demo", "doctor", "plugins"))
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines()}
    assert "typer" in imported
    assert not {"torch", "numpy", "pydantic", "msgpack"} & imported


def test_the_version_is_shown() -> None:
    assert invoke("--version") == (0, f"gather-core {__version__}\n")


@pytest.mark.parametrize("missing", ["rich", "typer"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from gather_core.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"the command line needs {missing}: install gather-core[cli]\n"


def test_commands_of_other_distributions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, commands=["hello = their_commands:hello", "several = their_commands:several"])
    assert invoke("hello", "--name", "there") == (0, "hello there\n")
    assert invoke("several", "two") == (0, "hello you\n")
    status, out = invoke("--help")
    assert status == 0
    assert "Several commands." in out


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("nowhere:thing", "other-plugins 1.0 (nowhere:thing): ModuleNotFoundError: No module named 'nowhere'"),
        ("their_commands:COMMAND", "has no attribute 'COMMAND'; upgrade or uninstall other-plugins 1.0"),
        ("their_commands:__name__", "TypeError: a command must be a function or a typer.Typer, not 'their_commands'"),
        ("their_commands:untypeable", "upgrade or uninstall other-plugins 1.0"),
        ("needs_absent:thing", "No module named 'absent_thing'; install other-plugins[x]"),
    ],
)
def test_a_broken_command_is_listed_with_the_reason_and_gives_it_when_used(
    target: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_absent.py").write_text("import absent_thing")
    installed(tmp_path, monkeypatch, commands=[f"broken = {target}", "hello = their_commands:hello"])
    status, out = invoke("--help")
    assert status == 0
    unwrapped = " ".join(out.replace("│", " ").split())
    assert "broken cannot be loaded: other-plugins 1.0" in unwrapped
    assert text in unwrapped
    for arguments in (["broken"], ["broken", "--some", "option", "x"], ["broken", "--help"]):
        status, out = invoke(*arguments)
        assert status == 1
        assert out.startswith("the command 'broken' cannot be loaded: ")
        assert text in out
    assert invoke("hello")[0] == 0


def test_a_command_that_ends_the_process_when_it_is_imported_is_in_nobodys_way(tmp_path: Path) -> None:
    points = {"commands": ["ends = ends_it:run"]}
    install(tmp_path, "other-plugins", points, modules={"ends_it": "import sys; sys.exit('no licence')"})
    status, out, err = gather("--help", path=[tmp_path])
    assert status == 0, err
    assert "SystemExit: no licence" in out
    assert gather("--version", path=[tmp_path])[0] == 0


def test_our_commands_cannot_be_shadowed_and_no_command_imports_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, monkeypatch, commands=["plugins = their_commands:hello", "hello = their_commands:hello"])
    status, out = invoke("plugins", "single")
    assert status == 0
    assert "hello" not in out
    assert "their_commands" not in sys.modules


def test_a_command_that_two_distributions_offer_runs_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, commands=["hello = their_commands:hello"])
    install(tmp_path, "second", {"commands": ["hello = their_commands:hello"]})
    status, out = invoke("hello")
    assert status == 1
    assert "other-plugins 1.0" in out
    assert "second 1.0" in out


def test_plugins_are_described_by_what_their_classes_say() -> None:
    zstd, pickle, raw = find("zstd"), find("pickle"), find("raw")
    assert zstd.traits == {"trust": "inner", "follows_another": True}
    assert [(option.name, option.default) for option in zstd.options] == [
        ("level", 1),
        ("min_nbytes", 10_000),
        ("max_ratio", 0.7),
    ]
    assert pickle.traits == {"trust": "code", "follows_another": False}
    assert raw.traits["trust"] == "data"
    assert (pickle.source, pickle.distribution, pickle.version) == ("built-in", "gather-core", __version__)
    single = find("single", "transport")
    assert single.available
    assert single.traits["locality"] == "process"
    assert single.traits["devices"] == ["cpu"]
    auto = find("auto", "transport")
    assert auto.available
    assert "gloo" in auto.summary
    assert find("auto").target.endswith(":AutoCodec")


def test_a_plugin_from_outside_is_in_the_json_of_a_fresh_interpreter(tmp_path: Path) -> None:
    status, out, err = gather("plugins", "reversed_json", "--json", path=[install_outside(tmp_path)])
    assert status == 0, err
    lists = json.loads(out)
    assert lists["transports"] == []
    [codec] = lists["codecs"]
    assert codec == {
        "kind": "codec",
        "name": "reversed_json",
        "source": "entry point",
        "distribution": "gather-outside",
        "version": "0.3",
        "target": "outside_codec:ReversedJsonCodec",
        "available": True,
        "reason": None,
        "warnings": [],
        "summary": "JSON, written backwards.",
        "doc": codec["doc"],
        "options": [{"name": "sort_keys", "default": False, "required": False}],
        "trust": "data",
        "follows_another": False,
    }


def test_a_transport_from_outside_is_in_the_json_with_its_capabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install_outside(tmp_path))
    lists = json.loads(invoke("plugins", "--json")[1])
    assert {"pickle", "msgpack", "zstd", "reversed_json"} < {item["name"] for item in lists["codecs"]}
    [star] = [item for item in lists["transports"] if item["name"] == "star"]
    traits = ("locality", "devices", "elastic_slots", "deadline", "death_detection", "crosses_wire", "shares_group")
    assert [star[trait] for trait in traits] == ["host", ["cpu"], False, True, "fast", True, False]


ODD = """
from gather_core import Codec, Trust
from gather_transports.single import SingleTransport

print("imported, loudly")

class Unasked(SingleTransport):
    name = "unasked"
    @classmethod
    def unavailable(cls, context):
        raise OSError("no such device")

class Depends(SingleTransport):
    "Says [red]what[/red] it can per object: \\u2713."
    name = "depends"
    @property
    def capabilities(self): ...
    def __init__(self, *, ratio=float("inf"), place=None, must): ...

class Odd(SingleTransport):
    name = "odd"
    __signature__ = "odd"

class Absent(SingleTransport):
    name = "absent"
    @classmethod
    def unavailable(cls, context):
        return "there is no [such] device"
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transports = [f"{name.lower()} = odd_plugins:{name}" for name in ("Unasked", "Depends", "Odd", "Absent")]
    points = {
        "transports": [*transports, "gone = nowhere:Gone", "My-Own = odd_plugins:Odd", "auto = odd_plugins:Odd"],
        "codecs": ["pickle = odd_plugins:Odd", "disputed = odd_plugins:Odd"],
    }
    install(tmp_path, "odd-plugins", points, modules={"odd_plugins": ODD})
    install(tmp_path, "second", {"codecs": ["disputed = odd_plugins:Odd"]})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_plugins", raising=False)


@pytest.mark.usefixtures("odd")
def test_what_is_broken_is_listed_with_its_reason_and_breaks_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {(info.kind, info.name): info.reason or "" for info in list_plugins() if not info.available}
    assert "OSError: no such device" in reasons["transport", "unasked"]
    assert "odd-plugins 1.0 (nowhere:Gone) cannot be loaded" in reasons["transport", "gone"]
    assert "start with a letter" in reasons["transport", "My-Own"]
    assert "cannot be described: " in reasons["transport", "odd"]
    assert reasons["transport", "absent"] == "there is no [such] device"
    assert "odd-plugins 1.0" in reasons["codec", "disputed"]
    assert "second 1.0" in reasons["codec", "disputed"]
    assert find("disputed").distribution in ("odd-plugins, second", "second, odd-plugins")
    assert find("pickle").available
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(("name", "kind"), [("pickle", "codec"), ("auto", "transport")])
def test_an_entry_point_with_the_name_of_a_built_in_is_warned_about(name: str, kind: str) -> None:
    [warning] = find(name, kind).warnings
    assert warning.startswith("odd-plugins 1.0 offers this name too, by an entry point that is not used")
    assert find("msgpack").warnings == []


@pytest.mark.usefixtures("odd")
def test_what_depends_on_the_object_is_not_claimed_for_the_class() -> None:
    info = find("depends", "transport")
    assert info.available
    assert info.traits == {}
    options = {option.name: (option.default, option.required) for option in info.options}
    assert options == {"ratio": ("inf", False), "place": (None, False), "must": (None, True)}


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("width", [200, 80, 30, 3])
def test_tables_hold_every_name_at_any_width(width: int) -> None:
    out = StringIO()
    found = list_plugins()
    print_plugins(Console(file=out, width=width), found)
    starts = {line.strip().partition(" ")[0] for line in out.getvalue().splitlines()}
    assert width < 30 or {info.name for info in found} <= starts


@pytest.mark.usefixtures("odd")
def test_a_docstring_is_shown_as_it_is() -> None:
    out = StringIO()
    print_plugins(Console(file=out, width=80), list_plugins("depends"), with_docs=True)
    assert "Says [red]what[/red] it can per object" in out.getvalue()


@pytest.mark.parametrize(
    ("spec", "kind", "names"),
    [
        ("msgpack+zstd", "codecs", ["msgpack", "zstd"]),
        ("shm+gloo:chunk_nbytes=1", "transports", ["shm", "gloo", "hierarchical"]),
    ],
)
def test_what_a_spec_names_is_shown(spec: str, kind: str, names: list[str]) -> None:
    status, out = invoke("plugins", spec, "--json")
    assert status == 0
    assert [info["name"] for info in json.loads(out)[kind]] == names


def test_one_plugin_is_shown_with_its_docstring() -> None:
    status, out = invoke("plugins", "zstd")
    assert status == 0
    assert "Compresses what another codec writes" in out
    assert "msgpack" not in out
    status, out = invoke("plugins", "zsdt")
    assert status == 1
    assert "no codec or transport is named 'zsdt'" in out
    assert "zstd" in out


def test_a_terminal_that_lacks_characters_is_no_reason_to_fail(tmp_path: Path) -> None:
    source = ODD.replace("print(", "str(")
    install(tmp_path, "odd-plugins", {"transports": ["depends = odd_plugins:Depends"]}, modules={"odd_plugins": source})
    status, out, err = gather("plugins", "depends", path=[tmp_path], env={"PYTHONIOENCODING": "ascii"})
    assert status == 0, err
    assert "per object: \\u2713" in out
