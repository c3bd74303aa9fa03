"""The command line: `gather`, also `gather-core` and `python -m gather_core`.

Commands come from the entry-point group `gather_core.commands`; an uninstalled checkout falls back to a static table.
"""

import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

_GROUP = "gather_core.commands"
_BUILTIN = {"demo": "gather_bench.demo.command:demo"}


def main() -> None:
    """Runs the command line; without the `cli` extra it says what to install."""
    try:
        import_module("rich")
        typer = import_module("typer")
    except ModuleNotFoundError as exc:
        sys.exit(f"the command line needs {exc.name}: install gather-core[cli]")
    app = typer.Typer(
        name="gather",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,
        help="Gather any Python object from every rank of a distributed job.",
    )
    app.callback()(_group_of_commands)
    for name, point in sorted(_commands().items()):
        app.command(name)(point.load())
    app()


def _group_of_commands() -> None:
    """Makes typer keep the name of a command that is the only one."""


def _commands() -> dict[str, EntryPoint]:
    builtin = {name: EntryPoint(name, target, _GROUP) for name, target in _BUILTIN.items()}
    return builtin | {point.name: point for point in entry_points(group=_GROUP)}
