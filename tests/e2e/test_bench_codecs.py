"""`gather bench --only-codecs`: what it measures, refuses, prints and writes; and the payloads that jobs gather."""

import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gather_bench.bench.command import bench
from gather_bench.bench.only_codecs import markdown
from gather_bench.bench.only_codecs.measure import measure_codecs, measure_ways
from gather_bench.bench.only_codecs.quantities import nbytes_text, seconds_text
from gather_bench.bench.only_codecs.results import CodecOptions, CodecReport, CodecRow, Machine
from gather_bench.bench.only_codecs.table import print_codecs
from gather_bench.bench.only_codecs.turns import fitting_calls, time_in_turns
from gather_bench.bench.only_codecs.ways import CodecWay, EncodedPayload, peer_ways
from gather_bench.bench.payloads import payload
from gather_bench.bench.results import Timing
from gather_bench.bench.workloads import WORKLOADS
from gather_core import EncodeError
from gather_core.exactness import difference

_PAGE = Path(__file__).parents[2] / "docs" / "which-codec.md"
_EIGHT = ["metrics", "dpr_step", "predictions", "tokens", "dataframe", "state_dict", "images", "config"]


def _bench(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(bench)
    return CliRunner().invoke(app, ["--only-codecs", *arguments], env={"COLUMNS": "80"})


@pytest.mark.parametrize("name", _EIGHT)
def test_a_payload_is_the_same_on_every_run_and_another_on_another_rank(name: str) -> None:
    first = payload(name)(1)
    assert difference(payload(name)(1), first) is None
    assert difference(payload(name)(2), first) is not None


def test_the_eight_payloads_are_what_they_are_said_to_be() -> None:
    made = {name: make(0) for name, make in WORKLOADS.items()}
    assert list(made) == _EIGHT
    assert len(made["predictions"]) == 5000
    assert {len(each["tokens"]) for each in made["predictions"]} == {12}
    assert made["predictions"][0].keys() == {"id", "score", "tokens", "text"}
    assert (made["images"].shape, len(made["state_dict"])) == ((32, 3, 224, 224), 24)
    assert _depth(made["config"]) == 6


def _depth(section: object) -> int:
    return 1 + max(map(_depth, section.values())) if isinstance(section, dict) else 0


def test_without_pandas_the_frame_says_what_it_needs_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    options = CodecOptions(("pickle",), ("dataframe", "metrics"), rounds=1, calls=1, peers=False)
    frame, metrics = measure_codecs(options).rows
    assert (frame.status, metrics.status) == ("failed", "measured")
    assert frame.reason == (
        "the payload cannot be made: ModuleNotFoundError: payload 'dataframe' needs pandas: pip install pandas"
    )


def test_codecs_and_peers_are_measured_on_every_payload_and_refusals_are_rows(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n{markdown.PART.start}\nold\n{markdown.PART.end}\nend\n")
    codecs = ["--codec", "msgpack", "--codec", "raw", "--payload", "metrics", "--payload", "dataframe"]
    files = ["--json", str(tmp_path / "out.json"), "--markdown", str(page)]
    done = _bench(*codecs, "--rounds", "2", "--calls", "1", *files)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out.json").read_text())
    status = {(row["payload"], row["way"]): row["status"] for row in report["rows"]}
    measured = {key for key, each in status.items() if each == "measured"}
    ours = {("metrics", "msgpack"), ("metrics", "bare msgpack")}
    assert measured == {*ours, ("metrics", "bare pickle"), ("dataframe", "bare pickle")}
    assert {key for key, each in status.items() if each == "refused"} == status.keys() - measured
    assert len({row["encoded_nbytes"] for row in report["rows"] if (row["payload"], row["way"]) in ours}) == 1
    for row in report["rows"]:
        if row["status"] == "measured":
            assert (row["calls"], len(row["encode"]["rounds"]), len(row["decode"]["rounds"])) == ([1, 1], 2, 2)
    assert report["schema_version"] == 1
    assert report["machine"]["versions"]["pandas"]
    assert "REFUSED msgpack: msgpack cannot encode $: it keeps no pandas.DataFrame" in " ".join(done.output.split())
    text = page.read_text()
    assert text.startswith(f"# Title\n{markdown.PART.start}\n")
    assert text.endswith(f"{markdown.PART.end}\nend\n")
    assert "old" not in text
    assert "| `dataframe` | refused | refused |" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ranks", "2"], "--ranks means nothing with --only-codecs"),
        (["--transport", "gloo"], "--transport means nothing"),
        (["--slot-nbytes", "4096"], "--slot-nbytes means nothing"),
        (["--codec", "msgpakc"], "Did you mean 'msgpack'?"),
        (["--payload", "dataframes"], "Did you mean 'dataframe'?"),
        (["--json", "no_such_folder/out.json"], "its folder does not exist"),
        (["--markdown", "no_such_page.md"], "it cannot be read"),
        (["--markdown", __file__], "it must hold the lines"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_measured(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gather_bench.bench.only_codecs import measure

    monkeypatch.setattr(measure, "measure_codecs", lambda *_: pytest.fail("it was measured"))
    done = _bench(*arguments)
    assert done.exit_code == 2
    assert told in " ".join(done.output.replace("│", " ").split())


def test_a_page_is_for_codecs_alone(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, ["--markdown", str(tmp_path / "page.md")])
    assert done.exit_code == 2
    assert "--markdown goes with --only-codecs" in done.output


def test_what_peers_lose_is_a_result_and_what_codecs_lose_is_a_fault() -> None:
    def way(name: str, decode: Callable[[], object], *, is_peer: bool = False) -> CodecWay:
        return CodecWay(name, lambda obj: EncodedPayload(3, lambda: b"abc", decode), is_peer)

    def refuse(obj: object) -> EncodedPayload:
        raise EncodeError("no tuples\nof any kind")

    ways = [way("right", lambda: (1,)), way("a list", lambda: [1]), way("raises", lambda: 1 // 0)]
    ways += [way("a peer's list", lambda: [1], is_peer=True), CodecWay("refuses", refuse)]
    rows = measure_ways("payload", (1,), ways, rounds=1, calls=1)
    assert [(row.way, row.status, row.reason, row.encoded_nbytes) for row in rows] == [
        ("right", "measured", None, 3),
        ("a list", "wrong", "$: tuple became list", None),
        ("raises", "failed", "ZeroDivisionError: integer division or modulo by zero", None),
        ("a peer's list", "wrong", "$: tuple became list", None),
        ("refuses", "refused", "no tuples", None),
    ]
    right, wrong, failed, peer, refused = rows
    for others, sound in (([peer, refused], True), ([wrong], False), ([failed], False)):
        assert _report(right, *others).is_sound == sound
    assert not _report(refused).is_sound


def test_bare_msgpack_is_not_measured_on_what_it_changes() -> None:
    for obj, status in (({1: [2.5]}, "measured"), ((1,), "wrong"), ({1, 2}, "refused")):
        assert [row.status for row in measure_ways("x", obj, peer_ways(), rounds=1, calls=1)] == ["measured", status]


def test_calls_take_turns_and_the_first_round_is_not_counted() -> None:
    now_s, called = 0.0, []

    def call(name: str, first_s: float, later_s: float) -> Callable[[], None]:
        def advance() -> None:
            nonlocal now_s
            now_s += first_s if name not in called else later_s
            called.append(name)

        return advance

    timed = {"a": call("a", 9.0, 2.0), "b": call("b", 9.0, 3.0)}
    times = time_in_turns(timed, 2, 1, clock=lambda: now_s)
    assert called == ["a", "b"] * 3
    assert {name: (calls, timing.rounds) for name, (calls, timing) in times.items()} == {
        "a": (1, (2.0, 2.0)),
        "b": (1, (3.0, 3.0)),
    }


@pytest.mark.parametrize(("probes_s", "calls"), [([9.0, 0.001, 0.002], 10), ([0.0] * 3, 5000), ([7.0] * 3, 1)])
def test_a_round_is_filled_going_by_the_middle_probe(probes_s: list[float], calls: int) -> None:
    ticks = [tick for probe_s in probes_s for tick in (0.0, probe_s)]
    assert fitting_calls(lambda: None, lambda: ticks.pop(0)) == calls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((seconds_text(4.9e-7), "0.49 us"), (seconds_text(0.0123456), "12.3 ms"), (seconds_text(75.0), "75.0 s")),
        *((seconds_text(0.99996e-3), "1.00 ms"), (seconds_text(0.000_123_4), "123 us")),
        *((nbytes_text(0), "0 B"), (nbytes_text(999), "999 B"), (nbytes_text(6_319_357), "6.32 MB")),
    ],
)
def test_quantities_have_three_digits_that_count(text: str, expected: str) -> None:
    assert text == expected


def _report(*rows: CodecRow) -> CodecReport:
    return CodecReport(Machine("CPU", 2, "Linux x86_64", {"Python": "3.11"}), CodecOptions(), rows)


def _row(way: str, seconds: float) -> CodecRow:
    timing = Timing.of([seconds])
    return CodecRow("payload", way, way.startswith("bare"), "measured", None, 12_345_678, (1, 1), timing, timing)


@pytest.mark.parametrize("width", [40, 80])
def test_no_number_is_cut_off_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    refused = CodecRow("payload", "raw", False, "refused", "it is a [dict]")
    print_codecs(console, _report(_row("msgpack+zstd:level=3", 0.1), refused, _row("bare pickle", 0.2)))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("msgpack+zstd:level=3", "12,345,678", "100 ms", "2.00", "200 ms", "REFUSED raw: it is a [dict]"):
        assert part in printed, part


def test_names_are_printed_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=80)
    report = _report(replace(_row("odd:one:", 0.1), payload="odd:zero:[bold]"))
    print_codecs(console, replace(report, machine=Machine("CPU:two:", 2, "Linux x86_64", {"Python": "3.11"})))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("odd:zero:[bold]", "odd:one:", "CPU:two:"):
        assert part in printed, part


def test_markdown_says_each_reason_once_and_quotes_it() -> None:
    refused = CodecRow("metrics", "raw", False, "refused", "no `dict`")
    rows = (refused, replace(refused, way="raw+zstd"), replace(refused, payload="config"))
    text = markdown.to_markdown(_report(_row("pickle", math.pi / 1e3), *rows))
    assert "- `metrics`: refused by raw+zstd: `no 'dict'`" in text
    assert "- `metrics`, `config`: refused by raw: `no 'dict'`" in text
    assert "| `payload` | 3.14 ms |" in text


def test_the_page_holds_a_table_of_all_payloads_and_codecs_that_can_be_made_anew() -> None:
    assert markdown.PART.problem(_PAGE) is None
    lines = _PAGE.read_text().splitlines()
    ways = [*CodecOptions().codecs, *(way.name for way in peer_ways())]
    for title in ("size", "encode", "decode"):
        start = lines.index(f"| {title} | {' | '.join(ways)} |")
        assert [line.split(" | ")[0] for line in lines[start + 2 : start + 10]] == [f"| `{name}`" for name in _EIGHT]
