"""The report of `gather bench` as a page and as CSV."""

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from gather_bench.bench.results import BASELINE, Report, Row, Split
from gather_bench.report.charts.axes import LogAxis
from gather_bench.report.flat_rows import COLUMNS, to_csv
from gather_bench.report.page import to_html
from made_report import NBYTES, made_report

_DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_LOADING = ("src", "href", "data", "action", "poster", "srcset")
_HOSTILE = "<script>alert('&')</script>"


class _Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.headings: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if data.strip() and self.tags and self.tags[-1] in ("h1", "h2"):
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def _row(status: str, reason: str, **fields: str) -> Row:
    row = made_report().rows[0]
    return replace(row, status=status, reason=reason, seconds=None, split=None, **fields)  # type: ignore[arg-type]


def _with(report: Report, *rows: Row) -> Report:
    return replace(report, rows=report.rows + rows)


def test_a_page_has_a_section_for_whatever_was_measured() -> None:
    report = _with(made_report(world_sizes=(2, 4)), _row("refused", "too large", payload="large"))
    assert _Page(to_html(report)).headings == [
        "gather bench",
        "Fastest ways",
        "Time against size",
        "Codec by transport",
        "Time against the number of ranks",
        "Where the time goes",
        "All rows",
        "Not measured",
    ]


def test_a_page_of_one_way_has_nothing_to_compare() -> None:
    report = made_report(codecs=("pickle",), transports=("shm",), payloads=("metrics",), peers=())
    headings = _Page(to_html(report)).headings
    assert "Codec by transport" not in headings
    assert "Time against the number of ranks" not in headings
    assert "Time against size" in headings


def test_a_page_of_nothing_says_why() -> None:
    page = _Page(to_html(replace(made_report(), rows=(_row("failed", "it broke"),))))
    assert page.headings == ["gather bench", "Not measured"]
    assert "it broke" in page.text


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    html = to_html(made_report(world_sizes=(2, 4)))
    page = _Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in _LOADING or name.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.parametrize("field", ["payload", "codec", "transport", "way", "reason"])
@pytest.mark.parametrize("status", ["measured", "failed"])
def test_names_and_reasons_are_text_whatever_they_hold(field: str, status: str) -> None:
    row = replace(made_report().rows[0], **{field: _HOSTILE})  # type: ignore[arg-type]
    if status == "failed":
        row = replace(row, status="failed", seconds=None, split=None)
    page = _Page(to_html(_with(made_report(), row)))
    assert "script" not in page.tags
    assert (_HOSTILE in page.text) == (field not in ("way", "reason") or (field, status) == ("reason", "failed"))


def test_the_same_report_gives_the_same_page() -> None:
    assert to_html(made_report()) == to_html(Report.from_json(made_report().to_json()))


def test_the_summary_names_the_fastest_way_and_how_many_times_faster_it_is() -> None:
    report = made_report(payloads=("metrics",))
    fastest = min((row for row in report.rows if row.codec and row.seconds), key=lambda row: row.seconds.median)  # type: ignore[union-attr]
    summary = to_html(report).partition("Fastest ways")[2].partition("</section>")[0]
    assert f"<td>{fastest.label}</td>" in summary
    assert f">{fastest.times_faster:.2f}<" in summary
    assert BASELINE in summary


def test_lines_that_would_lie_on_each_other_get_a_drawing_per_codec() -> None:
    few = made_report(codecs=("raw",), transports=("gloo", "shm", "auto"))
    many = made_report(codecs=("raw", "pickle", "msgpack"), transports=("gloo", "shm", "auto"))
    assert "2 ranks, msgpack" not in to_html(few)
    for codec in ("raw", "pickle", "msgpack"):
        assert f"<h3>2 ranks, {codec}</h3>" in to_html(many)


def test_between_hosts_the_wait_is_said_to_be_a_part_of_transfer() -> None:
    report = made_report()
    row = replace(report.rows[0], split=Split(1.0, None, 2.0, 3.0))
    assert "cannot be told from transfer" not in to_html(report)
    assert "cannot be told from transfer" in to_html(replace(report, rows=(row,)))


def test_every_tick_lies_on_its_axis_and_no_two_crowd_each_other() -> None:
    for low, high in ((1, 1), (80e-6, 90e-6), (159, 1_048_720), (1e-6, 100)):
        axis = LogAxis.around([low, high], 50, 450)
        places = [axis.at(tick) for tick in axis.decimal_ticks()]
        assert all(50 <= place <= 450 for place in places)
        assert len(places) <= 8
    axis = LogAxis.around([1, 64], 50, 450)
    places = [axis.at(tick) for tick in axis.with_room_between(range(1, 65))]
    assert min(later - place for place, later in pairwise(places)) >= 20


def test_csv_has_a_line_per_row_and_documented_columns() -> None:
    report = _with(made_report(), _row("failed", "a reason,\nof two lines"))
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(lines) == len(report.rows)
    first, row = lines[0], report.rows[0]
    assert row.seconds is not None
    assert float(first["median_s"]) == row.seconds.median
    assert tuple(map(float, first["rounds_s"].split())) == row.seconds.rounds
    assert int(first["payload_nbytes"]) == NBYTES[row.payload]
    assert first["cpu_model"] == report.environment.cpu_model
    assert lines[-1]["reason"] == "a reason,\nof two lines"
    assert lines[-1]["median_s"] == lines[-1]["encode_s"] == ""
    undocumented = [column for column in COLUMNS if f"`{column}`" not in _DOCS.read_text(encoding="utf-8")]
    assert not undocumented
