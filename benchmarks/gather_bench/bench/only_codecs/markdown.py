"""The report over codecs as Markdown: tables of payloads by ways, to stand between two markers of a page."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gather_bench.bench.only_codecs.quantities import nbytes_text, seconds_text
from gather_bench.bench.only_codecs.results import CodecReport, CodecRow
from gather_bench.bench.wording import count
from gather_bench.made_part import MadePart

PART = MadePart("<!-- measured by gather bench --only-codecs -->", "<!-- end of what was measured -->")


def put_into(page: Path, report: CodecReport) -> None:
    """Replaces what was measured in the page; raises as `MadePart.put`."""
    PART.put(page, to_markdown(report))


def to_markdown(report: CodecReport) -> str:
    """Writes where and how, a table each of sizes and times, and why what is missing there was not measured."""
    parts = [
        _where(report),
        _table("size", report.rows, lambda row: nbytes_text(row.encoded_nbytes or 0)),
        _table("encode", report.rows, lambda row: seconds_text(row.encode.median) if row.encode else ""),
        _table("decode", report.rows, lambda row: seconds_text(row.decode.median) if row.decode else ""),
        *_reasons(report.rows),
    ]
    return "\n".join(parts)


def _where(report: CodecReport) -> str:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"{machine.cpu}, {count(machine.cpu_count, 'CPU')}, {machine.platform}; {versions}.\n"
        f"Medians of {count(report.options.rounds, 'round')}, all ways in turns.\n"
    )


def _table(title: str, rows: Sequence[CodecRow], cell: Callable[[CodecRow], str]) -> str:
    ways = list(dict.fromkeys(row.way for row in rows))
    payloads = list(dict.fromkeys(row.payload for row in rows))
    texts = {(row.payload, row.way): cell(row) if row.status == "measured" else row.status for row in rows}
    lines = [[title, *ways], ["---", *("--:" for _ in ways)]]
    lines += [[f"`{payload}`", *(texts.get((payload, way), "-") for way in ways)] for payload in payloads]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _reasons(rows: Iterable[CodecRow]) -> list[str]:
    """Says once what is so for several payloads, or of several ways."""
    payloads: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.status != "measured":
            payloads.setdefault((row.way, row.status, row.reason or ""), []).append(f"`{row.payload}`")
    ways: dict[tuple[str, str, str], list[str]] = {}
    for (way, status, reason), names in payloads.items():
        ways.setdefault((", ".join(names), status, reason), []).append(way)
    return [
        f"- {names}: {status} by {' and '.join(each)}: {_code(reason)}"
        for (names, status, reason), each in ways.items()
    ]


def _code(text: str) -> str:
    """What others say is text and no markup."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
