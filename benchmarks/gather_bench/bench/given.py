"""Which options stand on the command line, whatever their values are."""

from collections.abc import Sequence

import typer


def given_options(context: typer.Context) -> Sequence[str]:
    """Lists them by their names, such as `--no-peers`, in the order of the help."""
    given = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            names = (context.params[name] is False and parameter.secondary_opts) or parameter.opts
            given.append(names[0])
    return given
