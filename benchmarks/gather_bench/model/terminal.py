"""The model for a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gather_bench.model.sheets import (
    Sheet,
    assumptions_text,
    conclusions,
    costs_sheet,
    prediction_sheets,
    residuals_sheet,
    unchecked_text,
    verdict_text,
)
from gather_bench.model.study import Study


def print_study(console: Console, study: Study) -> None:
    """Prints costs, residuals and the verdict of each fit, then what follows for more ranks."""
    for fit in study.fits:
        _print_sheet(console, costs_sheet(fit))
        _print_sheet(console, residuals_sheet(fit))
        console.print()
        for verdict in fit.verdicts():
            console.print(Text(verdict_text(verdict), style="green" if verdict.holds else "red"))
        if text := unchecked_text(fit):
            console.print(Text(text, style="yellow"))
    for sheet in prediction_sheets(study):
        _print_sheet(console, sheet)
    console.print()
    for text in (*conclusions(study), assumptions_text(study.cluster)):
        console.print(Text(text))


def _print_sheet(console: Console, sheet: Sheet) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, header in enumerate(sheet.headers):
        table.add_column(header, justify="left" if number < sheet.texts else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(Text(sheet.title, style="bold"))
    console.print(table)
