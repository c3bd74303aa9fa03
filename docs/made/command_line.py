"""The commands and options of `gather` as Markdown, from the command line itself."""

from collections.abc import Iterator
from typing import Any

import typer.main

from gather_core.command_group import build_app


def command_line() -> str:
    """Returns a section for each command."""
    group: Any = typer.main.get_command(build_app())
    context = group.make_context("gather", [], resilient_parsing=True)
    commands = ((name, group.get_command(context, name)) for name in group.list_commands(context))
    return "\n".join(line for name, command in commands for line in _section(name, command))


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join(["gather", name, *(f"[{one.name.upper()}]" for one in arguments), "[OPTIONS]" if options else ""])
    yield from (f"## gather {name}", "", f"`{usage.strip()}`", "", _as_markdown(command.help or ""), "")
    if command.params:
        yield from ("| option | default | |", "|---|---|---|", *map(_row, [*arguments, *options]), "")


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    else:
        names = ", ".join(f"`{one}`" for one in [*parameter.opts, *parameter.secondary_opts])
    value = parameter.default
    default = "" if value is None or isinstance(value, bool | list | tuple) else f"`{value}`"
    text = parameter.help or ""
    several = " (repeatable)" if getattr(parameter, "multiple", False) and "repeatable" not in text.lower() else ""
    return f"| {names} | {default} | {_cell(text)}{several} |"


def _as_markdown(text: str) -> str:
    return text.replace("<", "&lt;").strip()


def _cell(text: str) -> str:
    return " ".join(_as_markdown(text).replace("|", "\\|").split())
