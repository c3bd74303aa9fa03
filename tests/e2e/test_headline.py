import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gather_bench import headline
from gather_bench.bench.results import BASELINE, Report
from gather_bench.headline import NothingToDrawError, newest_result, to_svg
from gather_bench.report.outputs import read_report
from made_report import ENVIRONMENT, made_report

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / headline.RESULTS


def _texts(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_committed_drawing_is_what_the_command_makes_of_the_newest_results() -> None:
    drawing = (_ROOT / headline.DRAWING).read_text(encoding="utf-8")
    assert drawing == to_svg(read_report(newest_result(_RESULTS)))


def test_results_are_named_by_version_and_day_and_hold_hardware_and_versions() -> None:
    for path in _RESULTS.glob("[0-9]*.json"):
        where = read_report(path).environment
        assert path.stem == f"{where.gather_core}-{where.date}"
        assert where.cpu_model
        assert where.torch


def test_the_newest_results_are_those_of_the_latest_day(tmp_path: Path) -> None:
    for name in ("0.9.0-2026-11-30", "0.10.0-2027-01-05", "0.2.0-2025-12-31", "scaling-ways"):
        (tmp_path / f"{name}.json").touch()
    assert newest_result(tmp_path).stem == "0.10.0-2027-01-05"


def test_each_bar_says_how_many_times_faster_than_torch_it_is() -> None:
    report = made_report(
        world_sizes=(2, 4), peers=(BASELINE, "all_gather_list"), noise=0.0, slower={("pickle", "shm"): 0.2}
    )
    texts = _texts(to_svg(report))
    wanted = {"shm, 2 ranks": "19 x", "gloo, 4 ranks": "1.5 x", "all_gather_list, 2 ranks": "2.0 x"}
    for label, ratio in wanted.items():
        assert texts[texts.index(label) + 1] == ratio


def test_a_slower_way_has_its_bar_to_the_left_of_1() -> None:
    slow = made_report(codecs=("pickle",), noise=0.0, slower={("pickle", "gloo"): 4.0})
    bars = [each for each in ElementTree.fromstring(to_svg(slow)).iter() if "bar" in each.get("class", "").split()]
    faster, slower = bars[:2]  # shm and gloo of the first payload
    assert float(slower.attrib["x"]) + float(slower.attrib["width"]) == pytest.approx(
        float(faster.attrib["x"]), abs=0.02
    )


def test_the_drawing_names_hardware_versions_and_day() -> None:
    where = replace(ENVIRONMENT, cpu_model="Some <CPU>", cpu_count=6)
    svg = to_svg(replace(made_report(), environment=where))
    assert {"6 CPUs, Some <CPU>.", "gather-core 0.1.0, torch 2.13.0, Python 3.11.9; 2025-01-31."} <= set(_texts(svg))


def test_a_report_without_torchs_own_has_nothing_to_draw() -> None:
    with pytest.raises(NothingToDrawError, match="beside all_gather_object"):
        to_svg(made_report(peers=()))


def test_without_results_the_command_says_what_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["headline"])
    with pytest.raises(SystemExit) as exited:
        headline.main()
    assert exited.value.code == 2
    assert "`make results` writes one" in capsys.readouterr().err


def test_the_command_draws_the_file_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report: Report = made_report()
    source, drawing = tmp_path / "made.json", tmp_path / "made.svg"
    source.write_text(report.to_json())
    monkeypatch.setattr(sys, "argv", ["headline", "--from", str(source), "--svg", str(drawing)])
    headline.main()
    assert drawing.read_text(encoding="utf-8") == to_svg(report)
