"""Rows as text for a terminal, as JSON, and as a table between two markers of a page."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from faults.runner import KINDS, Row

START = "<!-- measured by make faults -->"
END = "<!-- end of what was measured -->"


def cells(row: Row) -> list[str]:
    """The columns of a row."""
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    counts = [str(len(there)) if kind in row.counted else "-" for kind, there in row.left.items()]
    return [
        str(row.number),
        row.name,
        row.transport,
        row.survivors,
        seconds,
        *counts,
        "ok" if not row.problems else "WRONG",
    ]


def heads() -> list[str]:
    """What the columns are called."""
    return [
        "no.",
        "what happens",
        "transport",
        "survivors raise",
        "after s",
        *(kind.replace("_", " ") for kind in KINDS),
        "",
    ]


def show(rows: Sequence[Row], tested: Mapping[int, str]) -> str:
    """As lines whose columns are aligned; behind them, what is shown by tests only, and what is wrong."""
    lines = [heads(), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += [f"{number}: shown by {names}" for number, names in tested.items()]
    text += [f"WRONG: {row.number} {row.name}, {row.transport}: {problem}" for row in rows for problem in row.problems]
    return "\n".join(text)


def to_json(rows: Sequence[Row], tested: Mapping[int, str]) -> str:
    """All of it."""
    return json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows], "tests": {**tested}}, indent=1)


def to_markdown(rows: Sequence[Row], tested: Mapping[int, str]) -> str:
    """Two tables: what ran, and what tests show."""
    lines = [f"{machine()}. {len(rows)} runs, {sum(bool(row.problems) for row in rows)} of them wrong.", ""]
    lines += [_line(heads()[:-1]), _line(["--:", "---", "---", "---", *["--:"] * (1 + len(KINDS))])]
    lines += [_line(cells(row)[:-1]) for row in rows]
    lines += ["", "Shown by tests of the suite alone:", "", _line(["no.", "tests"]), _line(["--:", "---"])]
    lines += [_line([str(number), names]) for number, names in tested.items()]
    return "\n".join(lines) + "\n"


def put_into(page: Path, text: str) -> None:
    """Replaces what is between the markers.

    Raises:
        ValueError: The page does not hold them once, and in order.
    """
    old = page.read_text()
    if old.count(START) != 1 or old.count(END) != 1 or old.index(START) > old.index(END):
        raise ValueError(f"{page} must hold the lines {START!r} and {END!r}, once and in this order")
    page.write_text(f"{old.partition(START)[0]}{START}\n\n{text}\n{END}{old.partition(END)[2]}")


def machine() -> str:
    """Where this ran."""
    import torch

    return (
        f"{os.cpu_count()} CPUs ({platform.machine()}), {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _line(line: Sequence[str]) -> str:
    return f"| {' | '.join(line)} |"
