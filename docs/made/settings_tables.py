"""Settings, limits and variables as Markdown, from the classes that hold them."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from gather_core.codec import Limits
from gather_core.settings import GatherSettings
from gather_core.settings_variables import known_variables

_HEAD = ("| key | default | variable |", "|---|---|---|")
_OTHERS = {
    "GATHER_FORBID_CODE": "`1`: codecs and transports that can run code are refused on every rank; nothing lifts it",
    "GATHER_HOST_ID": "the host of this process, for ranks that cannot see it for themselves",
    "GATHER_PROFILE": "which profile of the source is used",
    "GATHER_SETTINGS": "the TOML file, where the code names no source",
    "GATHER_WIRE": "`native`: `compat.all_gather_list` goes over a Gatherer; default `seed`",
}


def settings_tables() -> str:
    """Returns the three tables."""
    variables = known_variables()
    others = [name for name in variables if name in _OTHERS]
    lines = ["### Settings", "", *_HEAD, *_rows(GatherSettings(), "GATHER_")]
    lines += ["", "### Limits", "", *_HEAD, *_rows(Limits(), "GATHER_LIMITS__")]
    lines += ["", "### Other variables", "", "| variable | |", "|---|---|"]
    lines += [f"| `{name}` | {_OTHERS[name]} |" for name in others]
    shown = "\n".join(lines)
    if missing := [name for name in variables if f"`{name}`" not in shown]:
        raise ValueError(f"these variables are described nowhere: {', '.join(missing)}")
    return shown


def _rows(holder: Any, prefix: str) -> Iterator[str]:
    for one in fields(holder):
        value = getattr(holder, one.name)
        default = "see below" if isinstance(value, Limits) else "the group's" if value is None else f"`{value!r}`"
        yield f"| `{one.name}` | {default} | `{prefix}{one.name.upper()}` |"
