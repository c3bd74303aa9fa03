"""Metrics of all ranks as one dictionary."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from gather_core import Gatherer, ReduceError, RemoteEncodeError
from gather_core.reduction import combine
from thread_gatherers import caught, on_gatherers


@pytest.mark.parametrize(
    ("op", "loss", "count"),
    [("sum", 1.5 + 2.5 + 3.5, 3), ("mean", 2.5, 1.0), ("max", 3.5, 2), ("min", 1.5, 0)],
)
def test_numbers_arrays_and_tensors_are_reduced_name_by_name(op: Any, loss: float, count: float) -> None:
    def body(gatherer: Gatherer) -> dict[str, Any]:
        rank = gatherer.rank
        metrics = {"loss": 1.5 + rank, "count": rank, "array": np.arange(3) + rank, "tensor": torch.arange(3.0) - rank}
        return gatherer.reduce(metrics if rank else dict(reversed(metrics.items())), op)

    functions: dict[str, Any] = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}
    for reduced in on_gatherers(3, body):
        assert list(reduced) == ["tensor", "array", "count", "loss"]
        assert (reduced["loss"], reduced["count"]) == (loss, count)
        assert type(reduced["count"]) is type(count)
        columns = np.stack([np.arange(3) + rank for rank in range(3)])
        np.testing.assert_array_equal(reduced["array"], functions[op](columns, axis=0))
        rows = np.stack([np.arange(3.0) - rank for rank in range(3)])
        np.testing.assert_array_equal(reduced["tensor"].numpy(), functions[op](rows, axis=0))


@pytest.mark.parametrize("world_size", [1, 2])
def test_truth_values_are_counted_and_means_of_short_integers_do_not_overflow(world_size: int) -> None:
    def body(gatherer: Gatherer) -> dict[str, Any]:
        truths = {"bool": True, "array": np.array([True, False]), "tensor": torch.tensor([True, False])}
        short = {"number": np.uint8(200), "array": np.array([200], "uint8"), "tensor": torch.tensor([100]).char()}
        sums, means = gatherer.reduce(truths), gatherer.reduce(short, "mean")
        return {"sums": sums, "means": means, "number": gatherer.reduce({"x": np.uint8(200)})["x"]}

    for outcome in on_gatherers(world_size, body):
        sums, means = outcome["sums"], outcome["means"]
        assert type(sums["bool"]) is int
        assert (sums["bool"], outcome["number"]) == (world_size, 200 * world_size)
        assert sums["array"].tolist() == sums["tensor"].tolist() == [world_size, 0]
        assert (means["number"], means["array"].tolist(), means["tensor"].tolist()) == (200, [200], [100])


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_stays_nan_wherever_it_is(op: str, place: int) -> None:
    values = [1.0, 2.0, 3.0]
    values[place] = math.nan
    assert math.isnan(combine([{"x": value} for value in values], op)["x"])


def test_names_and_kinds_that_differ_are_an_error_on_every_rank() -> None:
    def body(gatherer: Gatherer) -> object:
        metrics: list[dict[str, Any]] = [
            {"loss": 1.0, "a": np.zeros(2)},
            {"a": np.zeros(3), "extra": 1},
            {"loss": 2.0, "a": np.zeros(2)},
        ]
        error = caught(lambda: gatherer.reduce(metrics[gatherer.rank]))
        assert isinstance(error, ReduceError)
        return error.failures, gatherer.reduce({"x": 1})

    failures = {
        0: "'extra' is missing, which rank 1 handed in",
        1: "'loss' is missing, which ranks 0, 2 handed in, "
        "'a' is ndarray of float64 and shape (3,) and of rank 0 ndarray of float64 and shape (2,)",
        2: "'extra' is missing, which rank 1 handed in",
    }
    assert on_gatherers(3, body) == [(failures, {"x": 3})] * 3


@pytest.mark.parametrize("metrics", [None, [1], {"x": "text"}, {"x": None}, {"x": 1j}])
def test_what_cannot_be_reduced_is_an_error_on_every_rank(metrics: Any) -> None:
    def body(gatherer: Gatherer) -> object:
        error = caught(lambda: gatherer.reduce(metrics if gatherer.rank else {"x": 1.0}))
        assert isinstance(error, RemoteEncodeError)
        return list(error.failures)

    assert on_gatherers(2, body) == [[1]] * 2


def test_an_unknown_operation_is_named() -> None:
    def body(gatherer: Gatherer) -> str:
        return str(caught(lambda: gatherer.reduce({"x": 1}, "median")))  # type: ignore[arg-type]

    assert all("op must be one of sum, mean, max, min, not 'median'" in text for text in on_gatherers(2, body))


def test_ranks_with_different_operations_are_told_so() -> None:
    def body(gatherer: Gatherer) -> str:
        return str(caught(lambda: gatherer.reduce({"x": 1}, "sum" if gatherer.rank else "mean")))

    texts = on_gatherers(2, body)
    assert all("reduce(" in text and "differ in the operation" in text for text in texts), texts
