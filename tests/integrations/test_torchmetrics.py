"""docs/how-to/torchmetrics.md: metrics whose states go through a Gatherer."""

import pickle
from typing import Any

import pytest
import torch

from gather_core import Gatherer, RankFailedError
from page_example import page_shows
from rank_pool import RankPool
from torchmetrics_states import merged, sync_with

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is in the dependency group `integrations`")

SCORES = torch.tensor([0.9, 0.2, 0.7, 0.4, 0.1, 0.8])
LABELS = torch.tensor([1, 0, 1, 1, 0, 0])
SHARES = (slice(0, 4), slice(4, 6))  # of two ranks, uneven


def test_the_page_shows_the_example_as_it_is() -> None:
    assert page_shows("how-to/torchmetrics.md", "torchmetrics_states.py")


def test_a_metric_with_numbers_and_one_with_uneven_lists_see_what_all_ranks_have(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[float, float, int]:
        from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

        with Gatherer("raw", timeout_s=30) as gatherer:
            sync = sync_with(gatherer)
            metrics = torchmetrics.MetricCollection([BinaryAccuracy(dist_sync_fn=sync), BinaryAUROC(dist_sync_fn=sync)])
            metrics.update(SCORES[SHARES[rank]], LABELS[SHARES[rank]])
            accuracy, auroc = (float(value) for value in metrics.compute().values())
            return accuracy, auroc, gatherer.stats.second_rounds

    from torchmetrics.functional.classification import binary_accuracy, binary_auroc

    expected = (float(binary_accuracy(SCORES, LABELS)), float(binary_auroc(SCORES, LABELS)), 0)
    assert pool.values(2, body) == [pytest.approx(expected)] * 2


def _word_lists() -> Any:
    """A metric whose lists have an entry for each sentence, and so another number on each rank."""

    class WordLists(torchmetrics.Metric):  # type: ignore[misc, name-defined]
        full_state_update = False

        def __init__(self) -> None:
            super().__init__()
            self.add_state("lengths", default=[], dist_reduce_fx=None)
            self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

        def update(self, lengths: list[int]) -> None:
            self.lengths.append(torch.tensor(lengths))
            self.total += len(lengths)

        def compute(self) -> tuple[list[list[int]], int]:
            return sorted(part.tolist() for part in self.lengths), int(self.total)

    return WordLists()


def test_lists_of_different_lengths_are_merged_in_one_exchange_and_the_metric_stays_as_it_was(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[Any, Any, int]:
        with Gatherer("msgpack", timeout_s=30) as gatherer:
            metric = _word_lists()
            for sentence in ([[3], [4, 5]], [[6, 7, 8]])[rank]:
                metric.update(sentence)
            whole = merged(metric, gatherer)
            return whole.compute(), int(metric.total), gatherer.stats.operations

    assert pool.values(2, body) == [(([[3], [4, 5], [6, 7, 8]], 6), 3, 1), (([[3], [4, 5], [6, 7, 8]], 6), 3, 1)]


def test_a_rank_that_has_seen_no_data_adds_nothing(pool: RankPool) -> None:
    scores = torch.stack([SCORES, 1 - SCORES, SCORES / 2], dim=1)
    labels = torch.tensor([0, 1, 2, 1, 1, 0])

    def body(rank: int, world_size: int) -> float:
        from torchmetrics.classification import MulticlassAUROC

        with Gatherer("msgpack", timeout_s=30) as gatherer:
            metric = MulticlassAUROC(3)
            if rank == 1:
                metric.update(scores, labels)
            return float(merged(metric, gatherer).compute())

    from torchmetrics.functional.classification import multiclass_auroc

    assert pool.values(2, body) == [pytest.approx(float(multiclass_auroc(scores, labels, 3)))] * 2


def test_the_gradient_of_this_rank_stays_and_wrong_use_on_one_rank_fails_both(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[bool, bool]:
        with Gatherer("raw", timeout_s=30) as gatherer:
            sync = sync_with(gatherer)
            parts = sync(torch.ones(rank + 1, requires_grad=True) * 2)
            with pytest.raises(ValueError, match="process_group"):
                sync(torch.ones(1), group=object())
            with pytest.raises(RankFailedError, match="rank 1"):
                sync(torch.ones(2).to_sparse() if rank == 1 else torch.ones(2))
            return parts[rank].requires_grad, parts[1 - rank].requires_grad

    assert pool.values(2, body) == [(True, False)] * 2


def test_a_metric_that_syncs_this_way_needs_no_process_group_and_can_be_cloned_but_not_pickled() -> None:
    with Gatherer("raw", "single") as gatherer:
        metric = torchmetrics.MeanMetric(dist_sync_fn=sync_with(gatherer), distributed_available_fn=lambda: True)
        metric.update(2.0)
        assert (metric.clone().compute(), gatherer.stats.operations) == (2.0, 2)
        with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
            pickle.dumps(metric)
