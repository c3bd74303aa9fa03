"""The states of torchmetrics' metrics, gathered by a Gatherer."""

from collections.abc import Callable
from typing import Any

import torch

from gather_core import Gatherer


def sync_with(gatherer: Gatherer, tag: str = "metric") -> Callable[..., list[torch.Tensor]]:
    """(all ranks) The `dist_sync_fn` of metrics: each tensor of their state in one exchange, whatever its shape."""

    def gather_all_tensors(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        if group is not None:
            raise ValueError("leave process_group out: the Gatherer was given its group when it was made")
        parts: list[torch.Tensor] = gatherer.all_gather(tensor.detach(), tag=tag)
        parts[gatherer.rank] = tensor  # with its autograd graph, as torchmetrics does it
        return [part.to(tensor.device) for part in parts]

    return gather_all_tensors


def merged(metric: Any, gatherer: Gatherer) -> Any:
    """(all ranks) A metric with the states of all ranks, in one exchange for all of them; `metric` stays as it is."""
    whole = metric.clone()
    whole.distributed_available_fn = lambda: False  # it has everything: `compute` has nothing to gather
    for rank, state in enumerate(gatherer.all_gather(metric.metric_state, tag=type(metric).__name__)):
        if rank != gatherer.rank:
            whole.merge_state(state)
    return whole
