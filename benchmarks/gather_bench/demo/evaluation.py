"""What the training is measured by: recall on held-out questions, and one process's loss and gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gather_bench.demo.model import Retriever
from gather_bench.demo.training import Texts, Trainer
from gather_core import Gatherer, interleave

_TOP = 10


def recall_at_10(model: Retriever, held_out: Texts, gatherer: Gatherer) -> float | None:
    """(all ranks) Every worker ranks the passages for its share of the questions, rank 0 gathers and scores them.

    Returns:
        On rank 0, the share of questions whose own passage is among their first ten; None elsewhere.
    """
    predictions = predict(model, held_out, gatherer.rank, gatherer.world_size)
    parts = gatherer.gather(predictions, dst=0, tag="predictions")
    return None if parts is None else _recall(interleave(parts, total=len(held_out)))


@torch.no_grad()
def predict(model: Retriever, held_out: Texts, rank: int, world_size: int) -> list[list[int]]:
    """Returns, for each question of a worker's share, the numbers of the first ten passages."""
    share = slice(rank, None, world_size)
    questions, passages = model(held_out.questions[share], held_out.passages)
    found: list[list[int]] = (questions @ passages.T).topk(_TOP).indices.tolist()
    return found


def _recall(predictions: Sequence[Sequence[int]]) -> float:
    """Question n is answered by passage n."""
    return sum(number in found for number, found in enumerate(predictions)) / len(predictions)


@dataclass(frozen=True)
class Agreement:
    """How far all workers together are from one process on the same global batch."""

    loss_difference: float
    gradient_difference: float
    """The largest of any element."""
    largest_gradient: float
    """The largest element of the gradient itself."""


def compare_with_one_process(trainer: Trainer, batch: Sequence[int], gatherer: Gatherer) -> Agreement:
    """(all ranks) Computes loss and gradient both ways; the same answer, the worst of any worker, on every rank."""
    loss, gradient = trainer.backward(batch), _gradient(trainer.model)
    loss_alone, gradient_alone = trainer.backward_alone(batch), _gradient(trainer.model)
    own = (
        abs(loss - loss_alone),
        (gradient - gradient_alone).abs().max().item(),
        gradient_alone.abs().max().item(),
    )
    return Agreement(*map(max, zip(*gatherer.all_gather(own, tag="agreement"), strict=True)))


def _gradient(model: Retriever) -> Tensor:
    """Returns a float32 copy of the whole gradient, flat."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
