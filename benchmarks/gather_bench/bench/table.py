"""The report as tables, one per payload, in 80 columns or fewer."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from statistics import median_low

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gather_bench.bench.details import details_list, details_table
from gather_bench.bench.recommendation import obstacle, reasons
from gather_bench.bench.results import BASELINE, Recommendation, Report, Row
from gather_bench.bench.wording import count, listing, rounds_text

_UNBOUNDED = 10_000
"""Columns, for measuring: what is measured in fewer is measured as cut off."""
_UNITS = ((1e-6, "us"), (1e-3, "ms"), (1.0, "s"))


def print_report(console: Console, report: Report) -> None:
    """Prints where, then a table per payload, and what was not measured and why."""
    console.print(Text(_headline(report)))
    for _, rows in groupby(report.rows, attrgetter("world_size", "payload")):
        _print_payload(console, list(rows), has_several_sizes=len(report.environment.world_sizes) > 1)
    _print_reasons(console, [row for row in report.rows if row.status == "unavailable"])
    console.print()
    console.print("encoded: bytes per rank; rounds: exchanges per call", highlight=False, style="dim")
    if any(row.times_faster is not None for row in report.rows):
        console.print(f"x: the median of {BASELINE} over that of the row", highlight=False, style="dim")
    console.print("of which: mean of the ranks; wait: for the last rank to come", highlight=False, style="dim")
    if report.recommendation is not None:
        _print_recommendation(console, report.recommendation)
    elif reason := obstacle(report.rows):
        console.print()
        console.print(Text.assemble(("Nothing is recommended: ", "bold"), reason))


def _print_recommendation(console: Console, found: Recommendation) -> None:
    console.print()
    settings = f"codec {found.codec!r}, transport {found.transport!r}, slot_nbytes {found.slot_nbytes:,}"
    console.print(Text.assemble(("Recommended: ", "bold"), settings))
    for reason in reasons(found):
        console.print(Text(reason))


def _headline(report: Report) -> str:
    where = report.environment
    ranks = "1 rank" if where.world_sizes == (1,) else f"{listing(where.world_sizes)} ranks"
    return (
        f"{ranks}, {count(where.hosts, 'host')}, {count(where.cpu_count, 'CPU')}, "
        f"torch {where.torch}, Python {where.python}\n"
        f"time per call on the slowest rank; interleaved, {rounds_text(report.options)}; "
        f"slots of {report.options.slot_nbytes:,} B"
    )


def _print_payload(console: Console, rows: Sequence[Row], *, has_several_sizes: bool) -> None:
    console.print()
    console.print(Text(_title(rows[0], has_several_sizes), style="bold"))
    if measured := [row for row in rows if row.seconds is not None]:
        table = _table(measured)
        console.print(table if _fits(console, table) else _list(measured))
        console.print()
        details = details_table(measured)
        console.print(details if _fits(console, details) else details_list(measured))
    _print_reasons(console, [row for row in rows if row.status not in ("measured", "unavailable")])


def _print_reasons(console: Console, rows: Sequence[Row]) -> None:
    """Says once what is so for several ways."""
    labels_by_reason: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        labels_by_reason.setdefault((row.status, row.reason or ""), {})[row.label] = None
    for (status, reason), labels in labels_by_reason.items():
        style = "red" if status in ("failed", "wrong") else "yellow"
        console.print(Text.assemble((status.upper(), style), f" {'; '.join(labels)}: {reason}"))


def _title(row: Row, has_several_sizes: bool) -> str:
    where = f", {count(row.world_size, 'rank')}" if has_several_sizes else ""
    size = "" if row.payload_nbytes is None else f": {row.payload_nbytes:,} bytes per rank as a plain pickle"
    return f"{row.payload}{where}{size}"


def _table(rows: Sequence[Row]) -> Table:
    """Only the first column may be folded."""
    scale, unit = _unit(rows)
    cells = [_cells(row, scale) for row in rows]
    headers = ("encoded", "rounds", f"median {unit}", f"quartiles {unit}", "x")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("way", overflow="fold", min_width=len(BASELINE))
    for index, header in enumerate(headers, 1):
        width = max(len(header), *(len(row[index]) for row in cells))
        table.add_column(header, justify="right", no_wrap=True, min_width=width)
    for row, (label, *numbers) in zip(rows, cells, strict=True):
        table.add_row(Text(label), *numbers, style="" if row.codec else "dim")
    return table


def _fits(console: Console, table: Table) -> bool:
    """Whether no number is cut off; where one would be, each row takes three lines instead."""
    return Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).minimum <= console.width


def _list(rows: Sequence[Row]) -> Text:
    """The same for a narrow terminal."""
    scale, unit = _unit(rows)
    lines = []
    for row in rows:
        label, encoded, rounds, median, quartiles, ratio = _cells(row, scale)
        lines += [label, f"  {median} {unit} ({quartiles}), {ratio} x", f"  {encoded} B, rounds: {rounds}"]
    return Text("\n".join(lines))


def _unit(rows: Sequence[Row]) -> tuple[float, str]:
    """The one unit of a table: the largest in which the row in the middle has a digit before the point."""
    middle = median_low(row.seconds.median for row in rows if row.seconds)
    return next((unit for unit in reversed(_UNITS) if middle >= unit[0]), _UNITS[0])


def _cells(row: Row, scale: float) -> list[str]:
    timing = row.seconds
    if timing is None:
        raise ValueError(f"{row.label} was not measured")
    return [
        row.label,
        f"{row.encoded_nbytes:,}",
        str(row.gather_rounds or "-"),
        _number(timing.median / scale),
        f"{_number(timing.lower_quartile / scale)} - {_number(timing.upper_quartile / scale)}",
        "-" if row.times_faster is None else _number(row.times_faster),
    ]


def _number(value: float) -> str:
    """Three digits that count, as far as there are any behind the point."""
    if value >= 1:
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"
