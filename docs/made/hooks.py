"""What the site adds to the pages when it is built; mkdocs calls these functions by name."""

import re
import sys
from pathlib import Path
from typing import Any

_MADE = re.compile(r"^<!-- made: ([a-z-]+) -->$", re.MULTILINE)
_FENCE = re.compile(r"^(```\w+) [^\n=]+$", re.MULTILINE)
"""A code block with a mark behind its language, which is for the tests."""
_ROOT = Path(__file__).parents[2]


def on_config(config: Any) -> Any:
    """Lets the makers import what they describe, from this checkout."""
    for folder in (_ROOT, _ROOT / "codecs", _ROOT / "transports", _ROOT / "benchmarks", Path(__file__).parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts in what is made from the code, and takes away the marks of code blocks."""
    return _MADE.sub(lambda marker: _make(marker[1]), _FENCE.sub(r"\1", markdown))


def _make(what: str) -> str:
    match what:
        case "command-line":
            from command_line import command_line

            return command_line()
        case "settings":
            from settings_tables import settings_tables

            return settings_tables()
        case "error-tree":
            from error_tree import error_tree

            return error_tree()
    raise ValueError(f"nothing makes {what!r}")
