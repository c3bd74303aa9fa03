"""What the doctor prints: a table, or JSON."""

import json
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gather_core.doctor.findings import Finding, worst
from gather_core.doctor.meeting import Meeting
from gather_core.errors import format_ranks

_STYLES = {"ok": "green", "slow": "yellow", "fails": "bold red"}
_IN_SHORT = {
    "ok": "Nothing that was looked at will be slow or fail.",
    "slow": "Nothing fails; see what will be slow, or is not as it should be.",
    "fails": "Something will fail.",
}


def print_table(console: Console, met: Meeting, findings: Sequence[Finding]) -> None:
    """Prints a row per finding, with how to mend it below, and then what it comes to."""
    has_ranks = met.world_size > 1
    table = Table(box=SIMPLE, padding=0, collapse_padding=True)
    for title in ("", "what", *(["ranks"] if has_ranks else [])):
        table.add_column(title, no_wrap=title != "ranks")
    table.add_column("found, and how to mend it", overflow="fold")
    for one in findings:
        row = [Text(one.level, _STYLES[one.level]), Text(one.subject), *([_ranks(one, met)] if has_ranks else [])]
        table.add_row(*row, _found(one))
    console.print(table)
    level = worst(findings)
    console.print(Text(_IN_SHORT[level], _STYLES[level]))


def as_json(met: Meeting, findings: Sequence[Finding], status: int) -> str:
    """The same as data, and the facts behind it."""
    values: dict[str, Any] = {
        "world_size": met.world_size,
        "gatherer": met.gatherer or None,
        "complete": met.is_complete,
        "status": status,
        "worst": worst(findings),
        "findings": [vars(one) for one in findings],
        "facts": {str(rank): facts.as_dict() for rank, facts in met.known.items()},
    }
    return json.dumps(values, indent=2)


def _ranks(finding: Finding, met: Meeting) -> Text:
    if not finding.ranks or len(finding.ranks) == met.world_size:
        return Text("all")
    return Text(format_ranks(finding.ranks).partition(" ")[2])


def _found(finding: Finding) -> Text:
    if not finding.mend:
        return Text(finding.what)
    return Text.assemble(f"{finding.what}\n", (f"mend: {finding.mend}", "bold"))
