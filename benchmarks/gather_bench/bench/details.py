"""What a call is made of, as a second table of each payload: where its time goes, and the memory that it takes."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from gather_bench.bench.only_codecs.quantities import nbytes_text, seconds_text
from gather_bench.bench.results import BASELINE, Row

_PARTS = ("encode", "wait", "transfer", "decode")


def details_table(rows: Sequence[Row]) -> Table:
    """Has a line for each row; a peer's time is not split."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("of which", overflow="fold", min_width=len(BASELINE))
    for header in (*_PARTS, "peak memory"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.label), *_parts(row), _peak(row), style="" if row.codec else "dim")
    return table


def details_list(rows: Sequence[Row]) -> Text:
    """The same for a narrow terminal."""
    lines = []
    for row in rows:
        parts = [f"{name} {value}" for name, value in zip(_PARTS, _parts(row), strict=True) if row.split]
        lines += [
            row.label,
            *(f"  {', '.join(pair)}" for pair in (parts[:2], parts[2:]) if pair),
            f"  peak {_peak(row)}",
        ]
    return Text("\n".join(lines))


def _parts(row: Row) -> list[str]:
    values = [getattr(row.split, name, None) for name in _PARTS]
    return ["-" if value is None else seconds_text(value) for value in values]


def _peak(row: Row) -> str:
    return "-" if row.peak_nbytes is None else nbytes_text(row.peak_nbytes)
