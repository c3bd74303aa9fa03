"""The command `gather plugins`: the list of codecs and transports as tables, or as JSON."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gather_core.errors import SettingsError
from gather_core.plugin_list import PluginInfo, PluginOption, list_plugins
from gather_core.registry import JOINT
from gather_core.spec import parse_spec

_TRUST = {"data": "no", "code": "yes", "inner": "as its inner codec"}
_DEATHS = {"fast": "at once", "timeout": "by deadline", "none": "never"}
_Column = tuple[str, Callable[[PluginInfo], str]]


def plugins(
    name: Annotated[str | None, typer.Argument(help="Only those of this name or spec, with their docstrings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List the codecs and transports that specs may name, and say whether they work here.

    The JSON is an object with the lists "codecs" and "transports". Their items have name, kind, source ("built-in",
    "entry point" or "registered"), distribution, version, target, available, reason, warnings, summary, doc and options
    (name, default, required); codecs also trust ("data", "code", or "inner": as what it follows) and follows_another;
    transports also locality, devices, elastic_slots, deadline, death_detection, crosses_wire, trust and shares_group.
    What cannot be loaded lacks those.
    """
    found = list_plugins() if name is None else _parts(name)
    if not found:
        known = ", ".join(sorted({info.name for info in list_plugins()}))
        typer.echo(f"no codec or transport is named {name!r}; known: {known}", err=True)
        raise typer.Exit(1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have all characters of a docstring
    if as_json:
        lists = {f"{kind}s": [info.as_json() for info in found if info.kind == kind] for kind in ("codec", "transport")}
        typer.echo(json.dumps(lists, indent=2))
    else:
        print_plugins(Console(), found, with_docs=name is not None)


def _parts(spec: str) -> list[PluginInfo]:
    """The plug-ins that a spec names, in its order: of "shm+gloo" also what joins the two."""
    try:
        names = [part.name for part in parse_spec(spec)]
    except SettingsError:
        return []
    found = [info for name in names for info in list_plugins(name)]
    joins = sum(info.kind == "transport" for info in found) > 1
    return [*found, *(list_plugins(JOINT) if joins else [])]


def print_plugins(console: Console, found: Sequence[PluginInfo], *, with_docs: bool = False) -> None:
    """Prints a table of codecs and one of transports, below each what is wrong with them."""
    _print_kind(console, "codec", found, [("can run code", _codec_trust)])
    _print_kind(console, "transport", found, [("ranks in", _locality), ("slots", _slots), ("sees deaths", _deaths)])
    if with_docs:
        for info in found:
            console.print(Text(f"\n{info.kind} {info.name}", "bold"))
            console.print(Padding(Text(info.doc or "It has no docstring."), (0, 0, 0, 2)))


def _print_kind(console: Console, kind: str, found: Sequence[PluginInfo], columns: Sequence[_Column]) -> None:
    infos = [info for info in found if info.kind == kind]
    if not infos:
        return
    shown: list[_Column] = [(kind, lambda info: info.name), ("works", lambda info: "yes" if info.available else "no")]
    shown += [*columns, ("from", _origin)]
    table = Table(box=SIMPLE, padding=0, collapse_padding=True)
    for index, (title, _) in enumerate(shown):
        table.add_column(title, overflow="fold", no_wrap=index == 0)
    for info in infos:
        table.add_row(*(Text(text(info)) for _, text in shown))
    console.print(table)
    for info in infos:
        for note in _notes(info):
            console.print(Text(f"{info.name}: {note}"))


def _notes(info: PluginInfo) -> list[str]:
    traits = info.traits
    is_transport = info.kind == "transport"
    said = [
        f"options {', '.join(map(_option, info.options))}" if info.options else "",
        info.summary if is_transport and info.available and not traits else "",
        info.reason or "",
        "has no deadline of its own" if not traits.get("deadline", True) else "",
        "receiving can run code that a peer chose" if is_transport and traits.get("trust") == "code" else "",
        "uses the job's own group, so never beside another collective" if traits.get("shares_group") else "",
    ]
    return [*filter(None, said), *(f"warning: {text}" for text in info.warnings)]


def _codec_trust(info: PluginInfo) -> str:
    return _TRUST.get(info.traits.get("trust", ""), "")


def _locality(info: PluginInfo) -> str:
    places = {"process": "a process", "host": "a host", "any": "any hosts"}
    return places.get(info.traits.get("locality", ""), "")


def _slots(info: PluginInfo) -> str:
    traits = info.traits
    devices = "/".join(traits.get("devices", ()))
    return f"{devices}, grow" if traits.get("elastic_slots") else devices


def _deaths(info: PluginInfo) -> str:
    return _DEATHS.get(info.traits.get("death_detection", ""), "")


def _option(option: PluginOption) -> str:
    if option.required:
        return f"{option.name} (required)"
    is_scalar = option.default is not None
    return f"{option.name}={json.dumps(option.default, ensure_ascii=False)}" if is_scalar else option.name


def _origin(info: PluginInfo) -> str:
    if info.distribution is None:
        return "built-in" if info.source == "built-in" else "this process"
    return f"{info.distribution} {info.version or ''}".rstrip()
