"""A comparison as tables, one per payload and world size, as those of the report."""

from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gather_bench.bench.only_codecs.quantities import seconds_text
from gather_bench.report.compare.changes import Change, Comparison
from gather_bench.report.compare.wording import change_text, conclusion, label, margin_text, remarks
from gather_bench.report.views import where

_HEADERS = ("then", "now", "change", "noise", "")
_STYLES = {"slower": "red", "faster": "green", "same": "", "not judged": "dim"}


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints every row that both reports have, what is beyond noise, and what else differs."""
    console.print()
    console.print("Compared with the old report", style="bold")
    for title, changes in groupby(comparison.changes, _title):
        console.print()
        console.print(Text(title))
        console.print(_table(list(changes)))
    console.print()
    console.print(Text(conclusion(comparison)))
    for remark in remarks(comparison):
        console.print(Text(remark, style="dim"))


def _title(change: Change) -> str:
    return where(change.new.payload, change.new.world_size)


def _table(changes: list[Change]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("way", overflow="fold")
    for header in _HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for change in changes:
        table.add_row(
            Text(label(change)),
            seconds_text(change.old_s),
            seconds_text(change.new_s),
            change_text(change),
            margin_text(change),
            "" if change.verdict == "same" else change.verdict,
            style=_STYLES[change.verdict],
        )
    return table
