"""The commands of the command line: ours, and those that distributions offer in `gather_core.commands`.

A command is imported when it is used or when the help lists it, so that one that is slow or broken is in nobody's way.
What an entry point names is a function that typer takes, or a `typer.Typer` of several commands.
"""

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import typer
import typer.core
import typer.main
from rich.markup import escape

from gather_core import __version__
from gather_core.distributions import offers, offers_of_name, origin_of_entry_point, repair
from gather_core.errors import summarize

_GROUP = "gather_core.commands"
_BUILTIN = {
    "bench": "gather_bench.bench.command:bench",
    "demo": "gather_bench.demo.command:demo",
    "doctor": "gather_core.doctor.command:doctor",
    "plugins": "gather_core.plugin_table:plugins",
}
"""Ours, which no distribution can shadow; an uninstalled checkout has them too."""


class CannotLoadError(Exception):
    """A command cannot be loaded; the message says why and what to do."""


class CommandGroup(typer.core.TyperGroup):
    """Finds commands by name, and loads them when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, those that cannot be loaded included."""
        return sorted({*_BUILTIN, *offers(_GROUP)})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, one that says why it cannot be loaded, or None."""
        points = _points(cmd_name)
        if not points:
            return None
        try:
            return _load(points)
        except CannotLoadError as exc:
            return _broken(cmd_name, str(exc))


def build_app() -> typer.Typer:
    """Returns the command line, to be called."""
    app = typer.Typer(
        name="gather",
        cls=CommandGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,
        rich_markup_mode="rich",  # also where it is not the default: the reasons of broken commands are escaped for it
        help="Gather any Python object from every rank of a distributed job.",
    )
    app.callback()(_options)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gather-core {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    """The options of `gather` itself."""


def _points(name: str) -> Sequence[EntryPoint]:
    return [EntryPoint(name, _BUILTIN[name], _GROUP)] if name in _BUILTIN else offers_of_name(_GROUP, name)


def _load(points: Sequence[EntryPoint]) -> Any:
    """Imports what the entry point names and makes a command of it.

    Raises:
        CannotLoadError: That fails, or several distributions offer the name.
    """
    origins = [origin_of_entry_point(point) for point in points]
    if len(points) > 1:
        raise CannotLoadError(f"offered by {' and '.join(map(str, origins))}: uninstall all but one")
    [point], [origin] = points, origins
    owner = origin.owner if origin.distribution else f"gather-core {__version__}"
    try:
        return _command(point.name, point.load())
    except (Exception, SystemExit) as exc:
        todo = repair(point, owner, exc)
        raise CannotLoadError(f"{owner} ({origin.target}): {summarize(exc)}; {todo}") from exc


def _command(name: str, target: Any) -> Any:
    if isinstance(target, typer.Typer):
        command = typer.main.get_command(target)
    else:
        if not callable(target):
            raise TypeError(f"a command must be a function or a typer.Typer, not {target!r}")
        app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False, rich_markup_mode="markdown")
        app.command(name)(target)
        command = typer.main.get_command(app)
    command.name = name
    return command


def _broken(name: str, reason: str) -> Any:
    """A command that takes anything, says why it does not work and exits with status 1."""

    def broken() -> None:
        typer.echo(f"the command {name!r} cannot be loaded: {reason}", err=True)
        raise typer.Exit(1)

    app = typer.Typer(add_completion=False)
    app.command(
        name,
        help=escape(f"cannot be loaded: {reason}"),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(broken)
    return typer.main.get_command(app)
