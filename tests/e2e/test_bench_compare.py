"""`gather bench --compare`: what is beyond noise, and what is said of it."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gather_bench.bench.command import bench
from gather_bench.bench.results import Report, Row, Timing
from gather_bench.compare_check import as_it_is, with_slow
from gather_bench.report.compare.changes import Comparison, compare
from gather_bench.report.compare.terminal import print_comparison
from gather_bench.report.compare.wording import conclusion, remarks
from made_report import ENVIRONMENT, NBYTES, made_report

_WAY = ("pickle", "shm")
_PAIRS = 10
_FEW = ("metrics", "dpr_step")


def _equal(seed: int, noise: float = 0.03) -> Comparison:
    old, new = (made_report(seed=each, noise=noise, payloads=_FEW) for each in (seed, seed + 1000))
    return compare(old, new)


def _planted(seed: int, factor: float) -> Comparison:
    return compare(
        made_report(seed=seed, payloads=_FEW), made_report(seed=seed + 1000, payloads=_FEW, slower={_WAY: factor})
    )


def _retimed(report: Report, change: Callable[[Row, tuple[float, ...]], list[float]]) -> Report:
    rows = [replace(row, seconds=Timing.of(change(row, row.seconds.rounds))) for row in report.rows if row.seconds]
    return replace(report, rows=tuple(rows))


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1, 0.5])
def test_equal_runs_are_silent_nine_times_of_ten_however_noisy(noise: float) -> None:
    assert sum(bool(_equal(seed, noise).beyond_noise) for seed in range(_PAIRS)) <= _PAIRS // 10


@pytest.mark.parametrize(("factor", "verdict"), [(1.2, "slower"), (1 / 1.2, "faster")])
def test_a_way_that_takes_20_percent_longer_or_less_is_shown_and_no_other(factor: float, verdict: str) -> None:
    shown = 0
    for seed in range(_PAIRS):
        found = {
            (change.new.codec, change.new.transport, change.verdict) for change in _planted(seed, factor).beyond_noise
        }
        assert found <= {(*_WAY, verdict)}
        shown += bool(found)
    assert shown >= 0.9 * _PAIRS


def test_a_machine_that_is_slower_altogether_is_no_change() -> None:
    new = _retimed(made_report(seed=1), lambda row, rounds: [2 * seconds for seconds in rounds])
    comparison = compare(made_report(seed=0), new)
    assert not comparison.beyond_noise
    assert all(change.new_s > 1.8 * change.old_s for change in comparison.changes)


def test_a_change_is_shown_on_a_machine_that_is_slower_altogether() -> None:
    new = made_report(seed=1, payloads=_FEW, slower={_WAY: 1.4})
    slower = _retimed(new, lambda row, rounds: [2 * seconds for seconds in rounds])
    found = compare(made_report(seed=0, payloads=_FEW), slower).beyond_noise
    assert {(change.new.codec, change.new.transport) for change in found} == {_WAY}


def test_slow_rounds_that_the_fast_ones_do_not_confirm_are_no_change() -> None:
    def disturb(row: Row, rounds: tuple[float, ...]) -> list[float]:
        is_ours = row.codec is not None
        return [seconds * (3 if is_ours and number >= 3 else 1) for number, seconds in enumerate(rounds)]

    assert not compare(made_report(seed=0), _retimed(made_report(seed=1), disturb)).beyond_noise


def test_small_changes_are_not_shown_however_sure_they_are() -> None:
    sizes = (2, 4, 8)
    old = made_report(noise=0.0001, world_sizes=sizes)
    for factor, is_shown in ((1.08, False), (1.12, True)):
        new = made_report(noise=0.0001, world_sizes=sizes, slower={_WAY: factor})
        assert compare(old, new).has_slower == is_shown


def test_peers_that_seem_to_have_changed_raise_what_counts_as_noise() -> None:
    def move_a_peer(row: Row, rounds: tuple[float, ...]) -> list[float]:
        return [seconds * (1.5 if row.way == "raw_collective" else 1) for seconds in rounds]

    calm = compare(made_report(seed=0), made_report(seed=1, slower={_WAY: 1.2}))
    restless = compare(made_report(seed=0), _retimed(made_report(seed=1, slower={_WAY: 1.2}), move_a_peer))
    assert calm.has_slower
    assert not restless.has_slower
    for one, other in zip(calm.changes, restless.changes, strict=True):
        assert one.margin is not None
        assert other.margin is not None
        assert one.margin < other.margin


@pytest.mark.parametrize("report", [made_report(peers=()), made_report(rounds=4)])
def test_nothing_is_judged_without_peers_or_with_few_rounds(report: Report) -> None:
    comparison = compare(report, report)
    assert {change.verdict for change in comparison.changes} == {"not judged"}
    assert "Nothing is judged" in conclusion(comparison)


def test_a_payload_of_another_size_is_told_and_not_judged() -> None:
    old, new = made_report(seed=0), made_report(seed=1, slower={_WAY: 3.0})

    def resized(nbytes: int) -> Report:
        rows = [replace(row, payload_nbytes=nbytes) if row.payload == "dpr_step" else row for row in new.rows]
        return replace(new, rows=tuple(rows))

    comparison = compare(old, resized(8_000_000))
    said = "payload dpr_step, 2 ranks, had 147,900 bytes, has 8,000,000: it is not judged"
    assert list(remarks(comparison)).count(said) == 1
    assert {change.verdict for change in comparison.changes if change.new.payload == "dpr_step"} == {"not judged"}
    assert {change.new.payload for change in comparison.beyond_noise} == {"metrics", "array:1MiB"}
    assert {change.new.payload for change in compare(old, resized(147_950)).beyond_noise} == set(NBYTES)


def test_reports_that_have_nothing_in_common_say_so() -> None:
    comparison = compare(made_report(payloads=("metrics",)), made_report(payloads=("dpr_step",)))
    assert "no measured row in common" in conclusion(comparison)


def test_what_differs_beside_the_code_is_said() -> None:
    new = made_report()
    moved = replace(ENVIRONMENT, torch="2.14.0", cpu_model="Another processor", world_sizes=(2, 4))
    said = list(remarks(compare(new, replace(new, environment=moved))))
    assert "the runs differ in torch: 2.13.0 then, 2.14.0 now" in said
    assert "the runs differ in cpu_model: A processor then, Another processor now" in said
    assert "the runs differ in world_sizes: 2 then, 2, 4 now" in said
    assert not [line for line in remarks(compare(new, new)) if "differ" in line]


def test_a_way_that_is_not_measured_any_more_is_said_with_its_reason() -> None:
    old = made_report()
    failed = replace(old.rows[0], status="failed", reason="it broke", seconds=None)
    said = list(remarks(compare(old, replace(old, rows=(failed, *old.rows[1:])))))
    assert "not measured any more: pickle, gloo, metrics, 2 ranks: it broke" in said


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_comparison_prints_every_row_and_marks_those_beyond_noise(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    print_comparison(console, _planted(0, 1.5))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("slower") == 3
    assert "Beyond noise, of 8 rows: 2 slower, 0 faster." in printed
    assert max(map(len, printed.splitlines())) <= width


def test_the_check_of_comparisons_slows_down_one_transport_and_leaves_the_rest() -> None:
    measured = [row for row in made_report(codecs=("pickle",)).rows if row.payload == "metrics"]
    slowed = [replace(row, way="slowed", reason="planted") for row in measured if row.codec]
    planted = with_slow("shm", [*measured, *slowed])
    assert as_it_is([*measured, *slowed]) == measured
    assert [(row.way, row.transport, row.reason) for row in planted if row.codec] == [
        ("gatherer", "gloo", None),
        ("gatherer", "shm", "planted"),
    ]


_APP = typer.Typer()
_APP.command()(bench)


def _gather_bench(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(_APP, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the reports of an old run, of one like it, and of one with a slower way."""
    for name, report in {
        "old": made_report(seed=0),
        "same": made_report(seed=1),
        "slower": made_report(seed=2, slower={_WAY: 1.3}),
    }.items():
        (tmp_path / f"{name}.json").write_text(report.to_json(), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("new", "options", "status"),
    [("same", ["--fail-on-slower"], 0), ("slower", [], 0), ("slower", ["--fail-on-slower"], 1)],
)
def test_two_files_are_compared_without_a_run(saved: Path, new: str, options: list[str], status: int) -> None:
    compared = ["--from", saved / f"{new}.json", "--compare", saved / "old.json", *options]
    code, output = _gather_bench(*compared, "--html", saved / "page.html", "--csv", saved / "rows.csv")
    assert code == status, output
    said = "Nothing has changed beyond noise" if new == "same" else "3 slower, 0 faster"
    assert said in output
    assert said in (saved / "page.html").read_text(encoding="utf-8")
    assert (saved / "rows.csv").read_text(encoding="utf-8").startswith("payload,")


_OF_MODEL = ("ranks-per-host", "latency-us", "gbit-per-s", "threads-per-core")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--fail-on-slower"], "--fail-on-slower goes with --compare"),
        (["--compare", "missing.json"], "missing.json"),
        (["--from", "missing.json"], "missing.json"),
        (["--from", "old.json", "--codec", "raw"], "leave out what says what to measure"),
        *(
            (["--from", "old.json", *surplus], f"leave out what says what to measure, {surplus[0]}")
            for surplus in (["--rounds", "15"], ["--slot-nbytes", "16384"], ["--calls", "2"], ["--no-peers"])
        ),
        (["--from", "old.json", "--csv", "out", "--html", "./out"], "--csv out: it is the file of --html too"),
        (["--json", "out", "--csv", "out"], "--csv out: it is the file of --json too"),
        (["--only-codecs", "--json", "out", "--markdown", "out"], "--markdown out: it is the file of --json too"),
        (["--model", "--from", "old.json", "--csv", "out", "--markdown", "out"], "it is the file of --csv too"),
        (["--only-codecs", "--slot-nbytes", "16384"], "--slot-nbytes means nothing with --only-codecs"),
        *((["--from", "old.json", f"--model-{name}", "8"], f"--model-{name} goes with --model") for name in _OF_MODEL),
        (["--from", "old.json", "--html", "no/such/folder.html"], "its folder does not exist"),
        (["--html", "no/such/folder.html"], "its folder does not exist"),
        (["--only-codecs", "--html", "page.html"], "--only-codecs"),
        (["--from", "rows.csv"], "rows.csv"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_measured(
    arguments: list[str], complaint: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved)
    (saved / "rows.csv").write_text("payload\n", encoding="utf-8")
    code, output = _gather_bench(*arguments)
    assert code == 2, output
    assert complaint in output
