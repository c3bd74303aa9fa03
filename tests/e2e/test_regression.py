import sys
from collections.abc import Iterator, Sequence

import pytest

from gather_bench import regression
from gather_bench.ratios import Ratio
from gather_bench.regression import complaints, measured_until_met


def _ratios(*pairs: tuple[float, float]) -> list[Ratio]:
    """Of ratio and least."""
    return [Ratio(2, "metrics", name, "torch", 1.0, *pair) for name, pair in zip(("shm", "gloo"), pairs, strict=False)]


def _measured(measurements: Sequence[Sequence[Ratio]]) -> tuple[list[Ratio], int]:
    """What comes of these measurements, one after the other, and how many were needed."""
    left: Iterator[Sequence[Ratio]] = iter(measurements)
    best = measured_until_met(lambda: next(left))
    return best, len(measurements) - len(list(left))


def test_a_ratio_that_is_met_is_measured_once() -> None:
    ratios = _ratios((12, 10), (2, 2))
    assert _measured([ratios, _ratios((1, 10), (1, 2))]) == (ratios, 1)
    assert complaints(ratios) == []


def test_a_ratio_that_is_missed_is_measured_again_and_passes_where_it_is_met_then() -> None:
    best, number = _measured([_ratios((9, 10), (3, 2)), _ratios((8, 10), (1, 2)), _ratios((11, 10), (1, 2))])
    assert ([ratio.value for ratio in best], number) == ([11, 3], 3)
    assert complaints(best) == []


def test_a_ratio_that_is_missed_three_times_fails_by_name_with_the_best_and_the_least() -> None:
    slow = [_ratios((value, 10), (3, 2)) for value in (4, 7, 5, 100)]
    best, number = _measured(slow)
    assert number == 3
    (complaint,) = complaints(best)
    assert complaint.startswith("metrics over shm is 7.00 times as fast as torch; at least 10 is wanted")


@pytest.mark.parametrize(("ratio", "status"), [(10, None), (9.99, "metrics over shm is 9.99 times")])
def test_the_command_fails_exactly_where_a_ratio_is_missed(
    ratio: float, status: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["regression"])
    monkeypatch.setattr(regression, "run_local_ranks", lambda *_: _ratios((ratio, 10)))
    if status is None:
        regression.main()
    else:
        with pytest.raises(SystemExit, match=status):
            regression.main()


def test_every_least_ratio_demands_more_than_what_is_replaced() -> None:
    assert all(least > 1 for transports in regression.LEAST.values() for least in transports.values())
