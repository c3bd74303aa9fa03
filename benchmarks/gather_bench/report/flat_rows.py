"""A report as CSV: a line per row, flat columns, for a spreadsheet or pandas."""

import csv
import io
from dataclasses import asdict, fields
from typing import Any

from gather_bench.bench.results import Environment, Report, Row, Split

_NESTED = ("seconds", "split")
_OF_ROW = tuple(field.name for field in fields(Row) if field.name not in _NESTED)
_OF_TIMING = ("median", "lower_quartile", "upper_quartile")
_OF_SPLIT = tuple(field.name for field in fields(Split))
_OF_ENVIRONMENT = tuple(field.name for field in fields(Environment) if field.name not in ("world_sizes", "hosts"))

COLUMNS = (
    *_OF_ROW,
    *(f"{name}_s" for name in _OF_TIMING),
    "rounds_s",
    *(f"{name}_s" for name in _OF_SPLIT),
    *_OF_ENVIRONMENT,
)
"""In the order of the file; those of the environment are the same in every line."""


def to_csv(report: Report) -> str:
    """Writes the columns' names and a line per row; what does not apply is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    environment = {name: value for name, value in asdict(report.environment).items() if name in _OF_ENVIRONMENT}
    writer.writerows({**_flat(row), **environment} for row in report.rows)
    return text.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    whole = asdict(row)
    timing, split = whole["seconds"] or {}, whole["split"] or {}
    return {
        **{name: whole[name] for name in _OF_ROW},
        **{f"{name}_s": timing.get(name) for name in _OF_TIMING},
        "rounds_s": " ".join(map(str, timing.get("rounds", ()))),
        **{f"{name}_s": split.get(name) for name in _OF_SPLIT},
    }
