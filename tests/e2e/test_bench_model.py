"""`gather bench --model`: what is fitted, what it is checked on, and what it predicts; no rank is started."""

from itertools import product

import numpy as np
import pytest

from gather_bench.model.cluster import Cluster
from gather_bench.model.fit import CannotFitError, fit_all
from gather_bench.model.nonnegative import nonnegative_least_squares
from gather_bench.model.points import SEED, Measured, Way
from gather_bench.model.predict import predict
from gather_bench.model.terms import Term
from gather_bench.model.work import Job, Work, all_gather_list, flat_gloo, hierarchical, shm

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
    Term.LISTED_BYTE: 30e-9,
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
    assert set(gatherers.costs) == set(_COSTS) - {Term.STEP, Term.LISTED_BYTE}
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
    assert (Term.WAKE in alone, crowded[Term.WAKE]) == (False, 7 * 4)


def test_gloo_goes_the_way_that_its_table_says() -> None:
    assert flat_gloo(_job(4))[Term.MESSAGE] == 6  # through the hub: 3 in, 3 out
    assert flat_gloo(_job(4))[Term.HOP] == 2
    in_two_rounds = flat_gloo(_job(4, 4 << 20))
    assert in_two_rounds[Term.MESSAGE] == 6 + 6 * 2  # and each of 4 ranks, on 2 cores, with 3 peers both ways
    assert flat_gloo(_job(64, hosts=8, cores=8))[Term.MESSAGE] == 2 * 63  # between hosts no hub but for few ranks
    assert flat_gloo(_job(64, hosts=8, cores=8))[Term.NETWORK_BYTE] == 8 * 56 * (1024 + 64)


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


def test_a_slower_network_is_assumed_where_it_is_said_to_be() -> None:
    fits = fit_all(_points(_GLOO, _SHM))
    fast, slow = (predict(fits, Cluster(gbit_per_s=gbit))[-1].seconds[_GLOO] for gbit in (100, 1))
    assert slow > 10 * fast
