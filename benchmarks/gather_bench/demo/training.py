"""Training over all workers as DPR does it: every step gathers the vectors of all of them."""

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gather_bench.demo.job import Bags
from gather_bench.demo.model import Retriever, contrastive_loss
from gather_core import Gatherer

_LEARNING_RATE = 0.05


class Texts:
    """Features of pairs as tensors, made once."""

    def __init__(self, bags: Bags) -> None:
        self.questions = [torch.tensor(question) for question, _ in bags]
        self.passages = [torch.tensor(passage) for _, passage in bags]

    def __len__(self) -> int:
        return len(self.questions)


class Trainer:
    """One worker's share of the training; all workers hold the same model and stay in step.

    Args:
        texts: All training pairs, the same on every worker.
        gatherer: What every step goes through.
        batch_size: Pairs per worker and step.
    """

    def __init__(self, texts: Texts, gatherer: Gatherer, batch_size: int) -> None:
        torch.manual_seed(0)  # every worker starts from the same model
        self.model = Retriever()
        self.last_gathered: list[Any] = []
        """What this worker put in last."""
        self._texts = texts
        self._gatherer = gatherer
        self._batch_size = batch_size
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=_LEARNING_RATE)

    def batches(self, epoch: int) -> list[list[int]]:
        """Returns the global batches of one epoch, the same on every worker; an incomplete last one is dropped."""
        order = list(range(len(self._texts)))
        random.Random(epoch).shuffle(order)
        size = self._batch_size * self._gatherer.world_size
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def step(self, batch: Sequence[int]) -> float:
        """(all ranks) One optimizer step on a global batch; returns its loss."""
        loss = self.backward(batch)
        self._optimizer.step()
        return loss

    def backward(self, batch: Sequence[int]) -> float:
        """(all ranks) Leaves the gradient of the global batch's loss in the model; returns the loss.

        Every worker computes the same loss, but only its own vectors are in its graph. Each vector is in one worker's
        graph, so the sum of the workers' gradients is the gradient that one process would have computed.
        """
        self.model.zero_grad()
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        return loss.item()

    def backward_alone(self, batch: Sequence[int]) -> float:
        """The same on this worker alone, with the whole batch in its graph."""
        self.model.zero_grad()
        loss = contrastive_loss(*self._embed(batch), torch.arange(len(batch)))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _loss(self, batch: Sequence[int]) -> Tensor:
        rank, size = self._gatherer.rank, self._batch_size
        questions, passages = self._embed(batch[rank * size : (rank + 1) * size])
        self.last_gathered = part_of(questions, passages)
        parts = self._gatherer.all_gather(self.last_gathered, tag="step")
        positives = _positives(parts)
        parts[rank] = [questions, passages]  # the same numbers, but in the graph
        return contrastive_loss(
            torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), positives
        )

    def _embed(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        questions = [self._texts.questions[number] for number in batch]
        passages = [self._texts.passages[number] for number in batch]
        vectors: tuple[Tensor, Tensor] = self.model(questions, passages)
        return vectors


def part_of(questions: Tensor, passages: Tensor) -> list[Any]:
    """What a worker puts in: vectors of questions and passages without their graph, and which of the latter answers."""
    return [questions.detach(), passages.detach(), list(range(len(questions)))]


def _positives(parts: Sequence[Sequence[Any]]) -> Tensor:
    """Turns each worker's indices into its own passages into indices into the passages of all workers."""
    positives: list[int] = []
    num_passages = 0
    for _, passages, indices in parts:
        positives += [num_passages + index for index in indices]
        num_passages += len(passages)
    return torch.tensor(positives)
