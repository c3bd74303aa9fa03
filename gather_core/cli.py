"""The command line: `gather`, also `gather-core` and `python -m gather_core`. Needs the `cli` extra, and says so."""

import sys
from importlib import import_module


def main() -> None:
    """Runs the command line; without the `cli` extra it says what to install."""
    try:
        import_module("rich")
        import_module("typer")
    except ModuleNotFoundError as exc:
        sys.exit(f"the command line needs {exc.name}: install gather-core[cli]")
    from gather_core.command_group import build_app

    build_app()()
