"""`gather bench --model`: what is fitted, what it is checked on, and what it predicts; no rank is started."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from gather_bench.bench import command
from gather_bench.bench.command import bench
from gather_bench.bench.options import Options
from gather_bench.bench.results import Report, Row, Timing
from gather_bench.model.cluster import Cluster
from gather_bench.model.fit import CannotFitError, fit_all
from gather_bench.model.markdown import PART
from gather_bench.model.nonnegative import nonnegative_least_squares
from gather_bench.model.options import ModelOptions
from gather_bench.model.points import SEED, Measured, Way, cores_of, points_of
from gather_bench.model.predict import Prediction, predict
from gather_bench.model.sheets import conclusions
from gather_bench.model.study import Study
from gather_bench.model.terms import Term
from gather_bench.model.work import Job, Work, all_gather_list, flat_gloo, hierarchical, shm, work_of
from gather_transports.shm_region import LENT_FROM_NBYTES
from made_report import ENVIRONMENT

_DOCS = Path(__file__).parents[2] / "docs"

_COSTS = {
    Term.CALL: 20e-6,
    Term.OBJECT: 3e-6,
    Term.ENCODED_BYTE: 0.4e-9,
    Term.DECODED_BYTE: 0.2e-9,
    Term.WAKE: 6e-6,
    Term.HOP: 90e-6,
    Term.MESSAGE: 15e-6,
    Term.WIRE_BYTE: 0.5e-9,
    Term.STEP: 100e-6,
}
_GLOO, _SHM, _SEED = Way("pickle", "gloo"), Way("pickle", "shm"), Way(SEED, "gloo")
_SIZES = (1 << 10, 64 << 10, 1 << 20, 4 << 20)


def _job(world_size: int, nbytes: int = 1024, *, hosts: int = 1, cores: float = 2, slot_nbytes: int = 16384) -> Job:
    return Job(world_size, hosts, cores, nbytes, slot_nbytes)


def _seconds(work: Work) -> float:
    return sum(_COSTS[term] * count for term, count in work.items())


def _points(*ways: Way, world_sizes: tuple[int, ...] = (1, 2, 3, 4, 8, 16)) -> list[Measured]:
    jobs = [(way, _job(world_size, nbytes)) for way, world_size, nbytes in product(ways, world_sizes, _SIZES)]
    return [Measured(way, job, _seconds(way.work(job))) for way, job in jobs]


def test_known_costs_are_found_again_and_points_beyond_are_met() -> None:
    gatherers, seed = fit_all(_points(_GLOO, _SHM, _SEED))
    for term, cost in gatherers.costs.items():
        assert cost == pytest.approx(_COSTS[term], rel=1e-6), term
    assert set(gatherers.costs) == set(_COSTS) - {Term.STEP}
    assert (gatherers.codec, seed.codec) == ("pickle", SEED)
    for verdict in [*gatherers.verdicts(), *seed.verdicts()]:
        assert (verdict.holds, verdict.checked) == (True, 8)
        assert verdict.largest_error == pytest.approx(0, abs=1e-6)


def test_points_with_more_than_4_ranks_check_the_fit_and_do_not_move_it() -> None:
    points = _points(_GLOO, _SHM)
    slower = [
        Measured(point.way, point.job, point.seconds * (2 if point.job.world_size == 16 else 1)) for point in points
    ]
    (fit,) = fit_all(slower)
    assert fit.costs == pytest.approx(fit_all(points)[0].costs)
    assert [(str(each.way), each.within, each.holds) for each in fit.verdicts()] == [
        ("pickle, gloo", 4, False),
        ("pickle, shm", 4, False),
    ]
    assert fit.verdicts()[0].largest_error == pytest.approx(-0.5)
    assert {each.point.job.world_size for each in fit.residuals if each.is_check} == {8, 16}


def test_no_cost_is_negative_and_noise_leaves_points_beyond_within_bounds() -> None:
    random = np.random.default_rng(1)
    noisy = [
        Measured(point.way, point.job, point.seconds * random.uniform(0.95, 1.05)) for point in _points(_GLOO, _SHM)
    ]
    (fit,) = fit_all(noisy)
    assert min(fit.costs.values()) >= 0
    assert all(verdict.holds for verdict in fit.verdicts())


def test_least_squares_without_negative_unknowns_has_no_better_neighbour() -> None:
    random = np.random.default_rng(7)
    for _ in range(50):
        matrix, wanted = random.normal(size=(12, 6)), random.normal(size=12)
        x = nonnegative_least_squares(matrix, wanted)
        gradient = matrix.T @ (matrix @ x - wanted)
        assert (x >= 0).all()
        assert (gradient >= -1e-9).all()
        assert np.abs(gradient[x > 0]).max(initial=0) < 1e-9


def test_too_few_points_are_refused_with_what_to_measure() -> None:
    with pytest.raises(CannotFitError, match=r"pickle: 8 points with 1 numbers of ranks .* --ranks 1,2,3,4,8,16"):
        fit_all(_points(_GLOO, _SHM, world_sizes=(4,)) + _points(_GLOO, world_sizes=(8,)))
    with pytest.raises(CannotFitError, match="nothing was measured that the model knows"):
        fit_all([])


def test_ranks_that_share_cores_take_turns() -> None:
    alone, crowded = shm(_job(8, cores=8)), shm(_job(8, cores=2))
    assert crowded[Term.OBJECT] == 4 * alone[Term.OBJECT]
    assert (Term.WAKE in alone, crowded[Term.WAKE]) == (False, 4)


def test_gloo_goes_the_way_that_its_table_says() -> None:
    assert flat_gloo(_job(4))[Term.MESSAGE] == 6  # through the hub: 3 in, 3 out
    assert flat_gloo(_job(4))[Term.HOP] == 2 * 2  # there and back, and 2 ranks for each core
    in_two_rounds = flat_gloo(_job(4, 4 << 20))
    assert in_two_rounds[Term.MESSAGE] == 6 + 6 * 2  # and each of 4 ranks, on 2 cores, with 3 peers both ways
    assert flat_gloo(_job(64, hosts=8, cores=8))[Term.MESSAGE] == 2 * 63  # between hosts no hub but for few ranks
    assert flat_gloo(_job(64, hosts=8, cores=8))[Term.NETWORK_BYTE] == 8 * 56 * (1024 + 64)


def test_gloo_with_other_bounds_goes_another_way() -> None:
    directly = work_of("gloo:hub_up_to_nbytes=0,all_to_all_up_to_nbytes=0")
    assert directly is not None
    assert (directly(_job(4))[Term.MESSAGE], directly(_job(4))[Term.HOP]) == (6 * 2, 2)
    assert work_of("gloo:chunk_nbytes=1") is None
    assert work_of("threads") is None


def test_a_leader_sends_to_other_hosts_what_its_host_has_and_every_rank_decodes_all() -> None:
    job = _job(64, hosts=8, cores=8)
    flat, by_hosts = flat_gloo(job), hierarchical(job)
    assert by_hosts[Term.OBJECT] == flat[Term.OBJECT] == 64
    assert by_hosts[Term.MESSAGE] < flat[Term.MESSAGE] / 4
    assert by_hosts[Term.NETWORK_BYTE] < flat[Term.NETWORK_BYTE]
    assert hierarchical(_job(8, cores=8)) == shm(_job(8, cores=8))


def test_a_ring_takes_more_steps_the_more_ranks_there_are_whatever_the_payload() -> None:
    work = all_gather_list(_job(64, hosts=8, cores=8))
    assert (work[Term.STEP], work[Term.NETWORK_HOP]) == (126, 126)
    assert work[Term.NETWORK_BYTE] == 126 * 16384


def test_predictions_go_up_to_8192_ranks_and_leave_out_what_was_not_measured() -> None:
    predictions = predict(fit_all(_points(_GLOO, _SHM)), Cluster(ranks_per_host=8))
    assert [each.world_size for each in predictions[:6]] == [8, 32, 128, 512, 2048, 8192]
    assert predictions[5].hosts == 1024
    assert {str(way) for each in predictions for way in each.seconds} == {"pickle, gloo", "pickle, shm+gloo"}
    assert predictions[5].seconds[_GLOO] > predictions[5].seconds[Way("pickle", "shm+gloo")] > 8192 * 3e-6
    with_seed = predict(fit_all(_points(_GLOO, _SHM, _SEED)), Cluster())
    assert with_seed[5].seconds[_SEED] > 2 * 8191 * 100e-6
    without_gloo = predict(fit_all(_points(_SHM)), Cluster())
    assert [len(each.seconds) for each in without_gloo[:2]] == [1, 0]  # on one host shm+gloo is shm


def test_a_conclusion_names_the_numbers_of_ranks_at_which_the_hierarchy_halves_the_time() -> None:
    flat, nested = _GLOO, Way("pickle", "shm+gloo")
    times = {8: (4.0, 1.0), 32: (4.0, 2.0), 128: (3.0, 2.0)}
    predictions = [
        Prediction("pickle", 1000, world_size, world_size // 8, {flat: one, nested: other})
        for world_size, (one, other) in times.items()
    ]
    told = list(conclusions(Study(ENVIRONMENT, 1, (), Cluster(), predictions)))
    assert told == [
        "pickle, 1.00 kB per rank: shm+gloo takes at most half as long as gloo with 8 and 32 ranks, "
        "at 128 ranks gloo takes 1.50 times as long as shm+gloo (modelled)"
    ]


def test_a_slower_network_is_assumed_where_it_is_said_to_be() -> None:
    fits = fit_all(_points(_GLOO, _SHM))
    fast, slow = (predict(fits, Cluster(gbit_per_s=gbit))[-1].seconds[_GLOO] for gbit in (100, 1))
    assert slow > 10 * fast


def _report(*ways: Way, world_sizes: tuple[int, ...] = (1, 2, 3, 4, 8, 16)) -> Report:
    points = _points(*ways, world_sizes=world_sizes)
    return Report(replace(ENVIRONMENT, world_sizes=world_sizes), Options(), tuple(map(_row, points)))


def _row(point: Measured) -> Row:
    """As a run would have measured it."""
    job, is_seed = point.job, point.way.codec == SEED
    return Row(
        payload=f"bytes:{job.nbytes}",
        payload_nbytes=job.nbytes,
        world_size=job.world_size,
        hosts=1,
        way=SEED if is_seed else "gatherer",
        codec=None if is_seed else point.way.codec,
        transport=None if is_seed else "auto",
        transport_used=None if is_seed else point.way.transport,
        status="measured",
        encoded_nbytes=job.nbytes,
        received_nbytes=job.nbytes * job.world_size,
        seconds=Timing.of([point.seconds] * 3),
    )


def _bench(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(bench)
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "out.json"
    path.write_text(_report(_GLOO, _SHM).to_json())
    return path


def test_a_saved_report_is_modelled_and_says_of_each_number_what_it_is(saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = _bench("--model", "--from", str(saved), "--html", str(page))
    assert done.exit_code == 0, done.output
    for text in (done.output, page.read_text()):
        assert "pickle: measured and modelled" in text
        assert "pickle, gloo: within 30 %. Of 8 points with more than 4 ranks, 8 are" in text
        assert "pickle, 1.02 kB per rank: modelled" in text
        assert "8,192" in text
        assert "Assumed: 8 ranks per host" in text
    assert re.search(r"object +3.00 us +every rank", done.output)
    assert re.search(r"pickle, shm +checked +1.02 kB +16 +", done.output)
    assert "16 ranks: " in page.read_text()


def test_a_check_that_fails_says_so_and_is_no_error(saved: Path) -> None:
    report = Report.from_json(saved.read_text())
    slower = [
        replace(row, seconds=Timing.of([3 * each for each in row.seconds.rounds]))
        if row.seconds and row.world_size == 16
        else row
        for row in report.rows
    ]
    saved.write_text(replace(report, rows=tuple(slower)).to_json())
    done = _bench("--model", "--from", str(saved))
    assert done.exit_code == 0, done.output
    assert "pickle, gloo: NOT within 30 %. Of 8 points with more than 4 ranks, 4 are; the largest error is -67 %" in (
        " ".join(done.output.split())
    )


def test_several_files_are_taken_together(saved: Path, tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_text(_report(_SEED).to_json())
    done = _bench("--model", "--from", str(saved), "--from", str(seed))
    assert done.exit_code == 0, done.output
    assert re.search(r"ranks +hosts +each rank gets +gloo +shm\+gloo +all_gather_list", done.output)
    refused = _bench("--from", str(saved), "--from", str(seed))
    assert (refused.exit_code, "go with --model" in refused.output) == (2, True)


def test_the_same_point_of_several_reports_is_the_median_of_all_their_rounds() -> None:
    report = _report(_GLOO)
    slower = replace(
        report,
        rows=tuple(
            replace(row, seconds=Timing.of([5 * each for each in row.seconds.rounds[:2]]))
            for row in report.rows
            if row.seconds
        ),
    )
    assert points_of([report, slower]) == points_of([report])


def test_rows_that_the_model_does_not_know_are_left_out() -> None:
    row = _row(_points(_GLOO)[0])
    left_out = [
        replace(row, transport_used="gloo:chunk_nbytes=1"),
        replace(row, transport_used="shm+gloo"),  # on one host
        replace(row, transport_used="shm", encoded_nbytes=LENT_FROM_NBYTES, received_nbytes=4 * LENT_FROM_NBYTES),
        replace(row, received_nbytes=1, world_size=4),  # of skewed sizes
        replace(row, seconds=None, status="failed"),
        replace(row, way="raw_copy", codec=None, transport=None, transport_used=None),
    ]
    assert points_of([Report(ENVIRONMENT, Options(), tuple(left_out))]) == []
    assert len(points_of([Report(ENVIRONMENT, Options(), (row, *left_out))])) == 1


def test_what_stands_between_the_markers_of_a_page_is_replaced_with_a_drawing_beside_it(
    saved: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n{PART.start}\nold\n{PART.end}\nend\n")
    done = _bench("--model", "--from", str(saved), "--markdown", str(page))
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert text.startswith(f"# Title\n{PART.start}\n\n### Many ranks")
    assert text.endswith(f"{PART.end}\nend\n")
    assert "old" not in text
    assert "](page.svg)" in text
    drawn = ElementTree.fromstring((tmp_path / "page.svg").read_text())
    titles = [each.text or "" for each in drawn.iter("{http://www.w3.org/2000/svg}title")]
    lent = [point for point in _points(_SHM) if point.job.nbytes >= LENT_FROM_NBYTES]
    assert sum(title.endswith(", measured") for title in titles) == len(_points(_GLOO, _SHM)) - len(lent) > 0
    assert any(title.startswith("8,192 ranks: ") and title.endswith(", modelled") for title in titles)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "--only-codecs"], "--model is about ranks"),
        (["--model", "--markdown", __file__, "--from"], "it must hold the lines"),
        (["--markdown", "page.md"], "--markdown goes with --only-codecs or --model"),
    ],
)
def test_what_cannot_be_modelled_is_refused_and_nothing_is_measured(
    arguments: list[str], told: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run_locally", "run_only_codecs"):
        monkeypatch.setattr(command, name, lambda *_: pytest.fail("something was measured"))
    done = _bench(*arguments, *([str(saved)] if arguments[-1] == "--from" else []))
    assert (done.exit_code, told in " ".join(done.output.split())) == (2, True)


def test_reports_that_do_not_suffice_or_belong_together_fail_with_what_to_do(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(_report(_GLOO, world_sizes=(2,)).to_json())
    done = _bench("--model", "--from", str(other))
    assert (done.exit_code, "measure more sizes" in done.output) == (1, True)
    report = _report(_GLOO)
    other.write_text(replace(report, environment=replace(report.environment, cpu_count=64)).to_json())
    done = _bench("--model", "--from", str(saved), "--from", str(other))
    assert (done.exit_code, "different machines: 2 x A processor and 64 x A processor" in done.output) == (1, True)


def test_the_page_on_scaling_and_its_drawing_are_what_the_command_makes_of_the_results(tmp_path: Path) -> None:
    page, drawing = _DOCS / "scaling.md", _DOCS / "scaling.svg"
    (line,) = re.findall(r"^gather bench (--model .*--markdown docs/scaling\.md)$", page.read_text(), re.MULTILINE)
    copy = tmp_path / "scaling.md"
    copy.write_text(page.read_text())
    arguments = [str(copy) if word == "docs/scaling.md" else word for word in line.split()]
    done = _bench(*(str(_DOCS.parent / word) if word.endswith(".json") else word for word in arguments))
    assert done.exit_code == 0, done.output
    assert copy.read_text() == page.read_text()
    assert copy.with_suffix(".svg").read_text() == drawing.read_text()


def test_threads_of_one_core_count_for_a_quarter_more_than_one() -> None:
    machine = replace(ENVIRONMENT, cpu_count=16)
    assert [cores_of(replace(machine, threads_per_core=threads)) for threads in (None, 1, 2)] == [16, 16, 10]


def test_what_a_report_knows_of_its_threads_counts_more_than_the_option() -> None:
    options = ModelOptions(threads_per_core=2)
    for known, used in ((None, 2), (1, 1)):
        report = Report(replace(ENVIRONMENT, threads_per_core=known), Options(), ())
        assert options._with_threads(report).environment.threads_per_core == used
