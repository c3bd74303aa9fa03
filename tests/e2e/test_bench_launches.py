"""`gather bench --launches`: workers that are started several times for one report, and how two such compare."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gather_bench import compare_check, local_ranks
from gather_bench.bench.command import bench
from gather_bench.bench.launches import pooled, pooled_rows
from gather_bench.bench.options import Options
from gather_bench.bench.results import BASELINE, Report, Row, Status, Timing
from gather_bench.report.compare.changes import Comparison, compare
from gather_bench.report.compare.wording import remarks
from made_report import made_report

_WAY = ("pickle", "shm")
_PAIRS = 10
_SCATTER = 0.08


def _made(seed: int, launches: int = 8, slower: float = 1.0) -> Report:
    """Launches of 10 rounds that differ by 8 %."""
    return made_report(
        seed=seed,
        payloads=("metrics", "dpr_step"),
        codecs=("pickle",),
        noise=0.1,
        rounds=10 * launches,
        launches=launches,
        launch_noise=_SCATTER,
        slower={_WAY: slower},
    )


def _compared(seed: int, **new: Any) -> Comparison:
    return compare(_made(seed), _made(seed + 1000, **new))


def test_equal_runs_are_silent_however_much_their_launches_differ() -> None:
    assert sum(bool(_compared(seed).beyond_noise) for seed in range(_PAIRS)) <= _PAIRS // 10


def test_20_percent_are_shown_where_launches_differ_by_8() -> None:
    shown = 0
    for seed in range(_PAIRS):
        found = {
            (each.new.codec, each.new.transport, each.verdict) for each in _compared(seed, slower=1.2).beyond_noise
        }
        assert found <= {(*_WAY, "slower")}
        shown += bool(found)
    assert shown >= 0.8 * _PAIRS


def test_what_is_only_in_one_launch_is_no_change() -> None:
    def disturb(row: Row, timing: Timing) -> list[float]:
        is_ours = row.codec is not None
        return [seconds * (3 if is_ours and number < 10 else 1) for number, seconds in enumerate(timing.rounds)]

    assert not compare(_made(0), _retimed(_made(1000), disturb)).beyond_noise


def test_peers_that_have_moved_further_than_they_scatter_raise_what_counts_as_noise() -> None:
    def move_a_peer(row: Row, timing: Timing) -> list[float]:
        return [seconds * (1.6 if row.way == "raw_collective" else 1) for seconds in timing.rounds]

    new = _made(1000, slower=1.4)
    calm, restless = compare(_made(0), new), compare(_made(0), _retimed(new, move_a_peer))
    for one, other in zip(calm.changes, restless.changes, strict=True):
        assert one.margin is not None
        assert other.margin is not None
        assert 1.5 * (one.margin - 1) < other.margin - 1


def _retimed(report: Report, change: Callable[[Row, Timing], list[float]]) -> Report:
    rows = [
        replace(row, seconds=Timing.of(change(row, row.seconds), row.seconds.launches))
        for row in report.rows
        if row.seconds
    ]
    return replace(report, rows=tuple(rows))


@pytest.mark.parametrize(("launches", "is_by_launches"), [(2, False), (3, True)])
def test_noise_is_guessed_from_rounds_where_there_are_fewer_than_3_launches(
    launches: int, is_by_launches: bool
) -> None:
    comparison = _compared(0, launches=launches)
    assert comparison.is_by_launches == is_by_launches
    said = list(remarks(comparison))
    assert any("--launches 8 in both runs" in line for line in said) != is_by_launches


def test_a_comparison_says_how_large_a_change_had_to_be() -> None:
    comparison = _compared(0)
    margins = sorted(100 * (each.margin - 1) for each in comparison.changes if each.margin is not None)
    assert f"noise: what the change must reach to be shown, here {margins[0]:.0f} % to {margins[-1]:.0f} %" in list(
        remarks(comparison)
    )


def test_a_row_keeps_which_launch_has_run_which_rounds() -> None:
    reports = [made_report(seed=seed, rounds=rounds) for seed, rounds in ((0, 2), (1, 3))]
    whole = pooled(reports, Options(rounds=5, launches=2))
    assert Report.from_json(whole.to_json()) == whole
    baseline = next(row for row in whole.rows if row.way == BASELINE)
    for number, row in enumerate(whole.rows[: len(whole.rows) // 3]):
        first, second = (report.rows[number].seconds for report in reports)
        assert first is not None
        assert second is not None
        assert row.seconds == Timing.of([*first.rounds, *second.rounds], (2, 3))
        assert baseline.seconds is not None
        assert row.times_faster == pytest.approx(baseline.seconds.median / row.seconds.median)


def test_a_row_that_some_launch_has_not_measured_is_as_in_the_worst() -> None:
    measured = made_report().rows[0]

    def failing(status: Status) -> Row:
        return replace(measured, status=status, reason=f"it is {status}", seconds=None)

    rows: list[list[Row]] = [[measured], [failing("wrong")], [failing("failed")], [measured]]
    assert pooled_rows(rows) == [failing("wrong")]


def test_a_file_without_launches_is_of_one() -> None:
    report = made_report()
    document = json.loads(report.to_json())
    del document["options"]["launches"]
    for row in document["rows"]:
        del row["seconds"]["launches"]
    read = Report.from_json(json.dumps(document))
    assert read.options.launches == 1
    assert not compare(read, read).is_by_launches
    assert {change.verdict for change in compare(read, report).changes} == {"same"}


_APP = typer.Typer()
_APP.command()(bench)


def _gather_bench(*arguments: object, variables: Mapping[str, str] | None = None) -> tuple[int, str]:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(_APP, given, env={"COLUMNS": "200", **(variables or {})})
    return result.exit_code, result.output


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds of each launch of workers, of which none is really started."""
    started: list[int] = []

    def run(ranks: int, body: object, options: Options) -> Report:
        started.append(options.rounds)
        return made_report(seed=len(started), rounds=options.rounds)

    monkeypatch.setattr(local_ranks, "run_local_ranks", run)
    monkeypatch.delenv("RANK", raising=False)
    return started


def test_workers_are_started_anew_for_each_part_of_the_rounds(started: list[int], tmp_path: Path) -> None:
    code, output = _gather_bench("--launches", 3, "--rounds", 10, "--json", tmp_path / "out.json")
    assert code == 0, output
    assert started == [4, 4, 4]
    report = Report.from_json((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (report.options.launches, report.options.rounds) == (3, 12)
    assert {row.seconds.launches for row in report.rows if row.seconds} == {(4, 4, 4)}
    assert "12 rounds in 3 launches" in output


@pytest.mark.parametrize(("options", "launches"), [([], 4), (["--launches", 2], 2)])
def test_a_run_to_compare_starts_workers_as_often_as_the_old_one(
    options: list[object], launches: int, started: list[int], tmp_path: Path
) -> None:
    old = tmp_path / "old.json"
    old.write_text(made_report(rounds=16, launches=4).to_json(), encoding="utf-8")
    code, output = _gather_bench("--compare", old, "--rounds", 16, *options)
    assert code == 0, output
    assert started == [16 // launches] * launches


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--launches", 0], "--launches"),
        (["--launches", 6, "--rounds", 5], "--launches 6: each runs a round at least, and there are 5: give --rounds"),
        (["--launches", 2, "--only-codecs"], "--launches means nothing with --only-codecs"),
        (["--launches", 2, "--from", "out.json"], "leave out what says what to measure"),
    ],
)
def test_launches_are_refused_where_no_workers_are_started(
    options: list[object], complaint: str, started: list[int]
) -> None:
    code, output = _gather_bench(*options)
    assert code == 2, output
    assert complaint in output
    assert not started


def test_the_check_of_comparisons_takes_the_launches_of_a_run_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = iter(range(100))

    def run(ranks: int, measure: object, rounds: int) -> list[Row]:
        rows = made_report(seed=next(seeds), codecs=("pickle",), payloads=("metrics",), rounds=rounds).rows
        return [*rows, *(replace(row, way="slowed") for row in rows if row.codec)]

    monkeypatch.setattr(compare_check, "run_local_ranks", run)
    file = tmp_path / "runs.json"
    arguments = ["compare_check", "--runs", "2", "--rounds", "20", "--launches", "4", "--json", str(file)]
    monkeypatch.setattr("sys.argv", arguments)
    compare_check.main()
    runs = json.loads(file.read_text(encoding="utf-8"))
    assert [{tuple(row["seconds"]["launches"]) for row in run} for run in runs] == [{(5, 5, 5, 5)}] * 2
    assert "equal runs: 0 of 1 comparisons" in capsys.readouterr().out
