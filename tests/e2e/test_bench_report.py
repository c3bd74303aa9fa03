"""What `gather bench` makes of its measurements: table, file and exit status."""

import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import typer
from rich.console import Console
from typer.testing import CliRunner

from gather_bench.bench import cases
from gather_bench.bench.command import bench
from gather_bench.bench.options import Options
from gather_bench.bench.publishing import File, publish
from gather_bench.bench.results import Environment, Recommendation, Report, Row, Split, Status, Timing
from gather_bench.bench.table import print_report
from made_report import made_report

_BASELINE = "torch_all_gather_object"


def test_the_spread_is_that_of_the_rounds() -> None:
    assert Timing.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0, (5.0, 1.0, 2.0, 4.0, 3.0), (5,))
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, (7.0,), (1,))


_ENVIRONMENT = Environment("0", "2.8", "3.11", "Linux", "A CPU", 2, (2, 4), 1, "gloo", "local", "2025-01-31")


def _report(*rows: Row) -> Report:
    return Report(_ENVIRONMENT, Options(), rows)


def _row(status: Status, reason: str | None = None) -> Row:
    return Row("payload", None, 2, 1, "gatherer", "raw", "auto", "gloo", status, reason)


def test_a_report_comes_back_from_its_json_and_another_version_is_refused() -> None:
    split = Split(0.1, None, 0.2, 0.3)
    report = replace(
        _report(replace(_SMALL_ROW, split=split), _row("refused", "it is a dict")),
        recommendation=Recommendation("pickle", "auto", 16384, 1.0, "msgpack", 1.25),
    )
    text = report.to_json()
    assert Report.from_json(text) == report
    assert Report.from_json(text.replace('"rows"', '"of a later release": 1, "rows"')) == report
    with pytest.raises(ValueError, match="schema_version is 1"):
        Report.from_json(text.replace('"schema_version": 2', '"schema_version": 1'))


def _damaged(path: str, value: Any) -> str:
    """A made report with one value replaced, by its place such as `rows.0.seconds`."""
    document = json.loads(made_report().to_json())
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    part = document
    for name in parents:
        part = part[name]
    part[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"schema_version": 2}', "the report is damaged: environment: Field required"),
        ("[" * 100_000, "nested too deeply"),
        (_damaged("environment", []), "environment: "),
        (_damaged("environment.world_sizes", []), "environment.world_sizes is empty"),
        (_damaged("environment.world_sizes", [0]), "environment.world_sizes is 0, less than 1"),
        (_damaged("environment.cpu_count", 0), "environment.cpu_count is 0"),
        (_damaged("options.launches", 0), "options.launches is 0"),
        (_damaged("rows", [None]), "rows.0: "),
        (_damaged("rows.1.world_size", 0), "rows.1.world_size is 0"),
        (_damaged("rows.1.seconds", None), "rows.1: a row has seconds where its status is measured"),
        (_damaged("rows.1.status", "failed"), "rows.1: a row has seconds where its status is measured"),
        (_damaged("rows.1.encoded_nbytes", None), "rows.1.encoded_nbytes is null"),
        (_damaged("rows.1.encoded_nbytes", -1), "rows.1.encoded_nbytes is -1, less than 0"),
        *((_damaged("rows.1.seconds.median", bad), "rows.1.seconds has") for bad in (0.0, -1.0, math.nan, math.inf)),
        (_damaged("rows.1.seconds.rounds", [1.0] * 14 + [math.nan]), "rows.1.seconds has nan, which is not a positive"),
        (_damaged("rows.1.seconds.rounds", []), "rows.1.seconds.rounds is empty"),
        (_damaged("rows.1.seconds.rounds.0", 10**400), "rows.1.seconds"),
        (_damaged("rows.1.seconds.launches", [7, 7]), "rows.1.seconds.launches does not add up to its rounds"),
        (_damaged("rows.1.times_faster", math.inf), "rows.1.times_faster has inf"),
        (_damaged("rows.1.split.encode", -1.0), "rows.1.split has what is no time"),
    ],
)
@pytest.mark.parametrize("option", ["--from", "--compare"])
def test_a_damaged_report_is_refused_in_one_line(option: str, text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        Report.from_json(text)
    assert "\n" not in str(refused.value)
    path = tmp_path / "out.json"
    path.write_text(text)
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, [option, str(path)], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert str(refused.value) in done.output


_TIMING = Timing.of([0.00123, 0.00123, 0.00123])
_LONG = Timing(4.8071, 4.5403, 5.9649, (4.8071,))
_SMALL_ROW = Row(
    *("payload", 10, 2, 1, "gatherer", "pickle", "auto", "gloo", "measured"),
    encoded_nbytes=123_456,
    received_nbytes=246_912,
    gather_rounds=2,
    calls=3,
    seconds=_TIMING,
    times_faster=1.25,
    split=Split(0.00012, None, 0.00034, 0.0056),
    peak_nbytes=7_890_000,
)
_LARGE_ROW = replace(_SMALL_ROW, payload="large", encoded_nbytes=67_108_890, seconds=_LONG, times_faster=0.0711)
_MIDDLE_ROW = replace(_LARGE_ROW, way=_BASELINE, codec=None, transport=None, seconds=_TIMING, times_faster=1.0)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_nothing_is_cut_off_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    print_report(console, _report(_SMALL_ROW, _row("refused", "it is a dict"), _LARGE_ROW, _MIDDLE_ROW))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, printed.splitlines())) <= width
    for part in ("pickle, auto (gloo)", "123,456", "1.23", "1.23 - 1.23", "1.25", "REFUSED raw, auto (gloo)"):
        assert part in printed, part
    for part in ("120 us", "340 us", "5.60 ms", "7.89 MB"):
        assert part in printed, part
    for part in ("67,108,890", "4,807", "4,540 - 5,965", "0.071"):
        assert part in printed, part


def test_names_and_versions_are_printed_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=80)
    row = replace(_SMALL_ROW, payload="odd:zero:[bold]", codec="odd:one:[red]")
    report = _report(row, replace(_row("refused", "an :ant:"), payload="odd:zero:[bold]"))
    environment = replace(_ENVIRONMENT, torch="2.8:two:")
    print_report(console, replace(report, environment=environment))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("odd:zero:[bold], 2 ranks: 10", "odd:one:[red]", "an :ant:", "torch 2.8:two:"):
        assert part in printed, part


def test_a_table_that_fits_is_a_table() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_report(console, _report(_SMALL_ROW))
    assert "quartiles ms" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ((_SMALL_ROW, _row("refused"), _row("unavailable")), 0),
        *(((_SMALL_ROW, _row("failed")), 1), ((_SMALL_ROW, _row("wrong")), 1), ((_row("refused"),), 1), ((), 1)),
    ],
)
def test_the_exit_status_is_0_where_something_was_measured_and_all_came_out_right(
    rows: tuple[Row, ...], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _report(*rows).is_sound == (status == 0)
    assert publish(_report(*rows), [], print_report) == status
    assert ("nothing was measured" in capsys.readouterr().err) == (_SMALL_ROW not in rows)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    link = tmp_path / "link.json"
    link.symlink_to(path)
    files = [File[Report]("--json", link, lambda report: "new")]
    report = _report(_SMALL_ROW)
    umask = os.umask(0o027)
    try:
        assert publish(report, files, print_report) == 0
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    assert publish(report, files, print_report) == 0
    assert path.stat().st_mode & 0o777 == 0o604

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(report, [File("--json", path, Report.to_json)], print_report)
    assert path.read_text() == "new"
    assert set(tmp_path.iterdir()) == {path, link}


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert publish(_report(_SMALL_ROW), [File("--json", path, lambda report: "all")], print_report) == 0
        assert os.read(reader, 10) == b"all"
    finally:
        os.close(reader)
    assert path.is_fifo()


def test_a_report_that_nobody_reads_is_written_all_the_same(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom gather_bench.bench.publishing import File, publish\n"
        "from gather_bench.bench.table import print_report\n"
        "from gather_bench.bench.options import Options\nfrom gather_bench.bench.results import Environment, Report\n"
        "where = Environment('0', '2', '3', 'x', 'y', 1, (1,), 1, 'gloo', 'local', '2025-01-31')\n"
        "report = Report(where, Options(), ())\n"
        "sys.exit(publish(report, [File('--json', Path('out.json'), Report.to_json)], print_report))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as unread:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=tmp_path,
            stdout=unread,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (141, "Error: nothing was measured\n")
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == []


@pytest.mark.parametrize(
    ("backends", "label"),
    [
        (
            "cpu:gloo,cuda:nccl",
            "torch_all_gather_object (gloo), all_gather_list (gloo), raw_collective (gloo), raw_copy",
        ),
        ("cpu:gloo,cuda:gloo", "torch_all_gather_object, all_gather_list, raw_collective, raw_copy"),
    ],
)
def test_peers_say_which_backend_carries_them_where_a_job_has_several(
    backends: str, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda: backends)
    rows = [_row_of_peer(case) for case in cases.peer_cases()]
    assert ", ".join(row.label for row in rows) == label


def _row_of_peer(case: Any) -> Row:
    return Row("payload", None, 2, 1, case.way, None, None, case.transport_used, "measured")
