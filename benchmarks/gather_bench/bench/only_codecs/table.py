"""The report over codecs for a terminal: one table per payload, in 80 columns or fewer."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gather_bench.bench.only_codecs.quantities import seconds_text, three_digits
from gather_bench.bench.only_codecs.results import CodecReport, CodecRow
from gather_bench.bench.results import Timing
from gather_bench.bench.wording import count

_BASELINE = "bare pickle"
_UNBOUNDED = 10_000
"""Columns, for measuring: what is measured in fewer is measured as cut off."""


def print_codecs(console: Console, report: CodecReport) -> None:
    """Prints where, then a table per payload, with what was not measured and why."""
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    console.print(Text(f"{report.machine.cpu}, {count(report.machine.cpu_count, 'CPU')}: {versions}"))
    console.print(f"medians; interleaved, {count(report.options.rounds, 'round')}", highlight=False)
    for name, rows in groupby(report.rows, attrgetter("payload")):
        console.print()
        console.print(Text(name, style="bold"))
        _print_payload(console, list(rows))
    console.print()
    console.print(f"x: the median of {_BASELINE} over that of the row", highlight=False, style="dim")


def _print_payload(console: Console, rows: Sequence[CodecRow]) -> None:
    measured = [row for row in rows if row.status == "measured"]
    if measured:
        table = _table(measured)
        console.print(table if _fits(console, table) else _list(measured))
    for row in rows:
        if row.status != "measured":
            style = "yellow" if row.status == "refused" or row.is_peer else "red"
            console.print(Text.assemble((row.status.upper(), style), f" {row.way}: {row.reason}"))


def _fits(console: Console, table: Table) -> bool:
    """Whether nothing is cut off; where something would be, each row takes three lines instead."""
    return Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).maximum <= console.width


def _table(rows: Sequence[CodecRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("way", no_wrap=True)
    for header in ("bytes", "encode", "x", "decode", "x"):
        table.add_column(header, justify="right", no_wrap=True)
    for row, (way, *numbers) in zip(rows, _cells(rows), strict=True):
        table.add_row(Text(way), *numbers, style="dim" if row.is_peer else "")
    return table


def _list(rows: Sequence[CodecRow]) -> Text:
    """The same for a narrow terminal."""
    lines = []
    for way, nbytes, encode, times_encode, decode, times_decode in _cells(rows):
        lines += [f"{way}: {nbytes} B", f"  encode {encode}, {times_encode} x", f"  decode {decode}, {times_decode} x"]
    return Text("\n".join(lines))


def _cells(rows: Sequence[CodecRow]) -> list[list[str]]:
    baseline = next((row for row in rows if row.way == _BASELINE), None)
    return [
        [
            row.way,
            f"{row.encoded_nbytes:,}",
            *_time(row.encode, baseline.encode if baseline else None),
            *_time(row.decode, baseline.decode if baseline else None),
        ]
        for row in rows
    ]


def _time(timing: Timing | None, baseline: Timing | None) -> tuple[str, str]:
    if timing is None:
        return "-", "-"
    return seconds_text(timing.median), three_digits(baseline.median / timing.median) if baseline else "-"
