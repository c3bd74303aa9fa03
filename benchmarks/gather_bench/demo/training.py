"""What every worker does: train, gathering vectors of all workers in each step, and answer the held-out questions."""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gather_bench.demo.model import Retriever, features, loss_of, recall_at_10
from gather_bench.peers import seed_all_gather_list, torch_all_gather_object
from gather_core import Gatherer, interleave

_LEARNING_RATE = 0.02
_COMPARED_STEPS = 15
"""Steps at the end in which the peers gather the same objects, for their times."""
Texts = list[list[int]]


@dataclass(frozen=True)
class DemoOptions:
    """What the command line chose."""

    corpus: str
    """Path of a JSON file: {"train": [[question, passage], ...], "held_out": ...}."""
    codec: str
    transport: str
    slot_nbytes: int
    epochs: int
    batch_size: int


@dataclass(frozen=True)
class DemoResult:
    """What rank 0 reports."""

    num_pairs: int
    transport: str
    recall_before: float
    recall_after: float
    loss_difference: float
    gradient_difference: float
    nbytes_per_step: float
    operations: int
    second_rounds: int
    slot_nbytes_needed: int
    seconds: dict[str, float]
    """Median of the slowest worker's time to gather one step, by what gathered it."""


def work(options: DemoOptions) -> DemoResult | None:
    """The body of one worker; rank 0 returns the result."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        with Gatherer(options.codec, options.transport, slot_nbytes=options.slot_nbytes, timeout_s=60) as gatherer:
            return _Worker(options, gatherer).run()
    finally:
        dist.destroy_process_group()


class _Worker:
    def __init__(self, options: DemoOptions, gatherer: Gatherer) -> None:
        self.options = options
        self.gatherer = gatherer
        corpus = json.loads(Path(options.corpus).read_text())
        self.num_pairs = len(corpus["train"]) + len(corpus["held_out"])
        self.train = [(features(question), features(passage)) for question, passage in corpus["train"]]
        self.held_out = [(features(question), features(passage)) for question, passage in corpus["held_out"]]
        torch.manual_seed(0)  # the same start on every worker
        self.model = Retriever()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=_LEARNING_RATE)
        self.seconds: dict[str, list[float]] = {}

    def run(self) -> DemoResult | None:
        recall_before = self.evaluate()
        differences = self.compare_with_one_process(self.batches(epoch=0)[0])
        for epoch in range(self.options.epochs):
            losses = [self.step(batch) for batch in self.batches(epoch)]
            if self.gatherer.rank == 0:
                print(f"epoch {epoch + 1}/{self.options.epochs}: loss {sum(losses) / len(losses):.3f}", flush=True)
        steps = self.gatherer.stats.operations
        nbytes = self.gatherer.stats.sent_nbytes
        stats = self.gatherer.stats
        second_rounds, needed = stats.second_rounds, stats.largest_slot_nbytes
        recall_after = self.evaluate()
        seconds = self.compare_times()
        if recall_before is None or recall_after is None or seconds is None:
            return None
        return DemoResult(
            num_pairs=self.num_pairs,
            transport=self.gatherer.describe(),
            recall_before=recall_before,
            recall_after=recall_after,
            loss_difference=differences[0],
            gradient_difference=differences[1],
            nbytes_per_step=nbytes * self.gatherer.world_size / steps,
            operations=steps,
            second_rounds=second_rounds,
            slot_nbytes_needed=needed,
            seconds=seconds,
        )

    def batches(self, epoch: int) -> list[list[int]]:
        """Global batches of one epoch, the same on every worker; the last incomplete one is dropped."""
        order = list(range(len(self.train)))
        random.Random(epoch).shuffle(order)
        size = self.options.batch_size * self.gatherer.world_size
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def step(self, batch: Sequence[int]) -> float:
        """One optimizer step on a global batch; returns its loss."""
        self.optimizer.zero_grad()
        loss = self.distributed_loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.sum_gradients()
        self.optimizer.step()
        return loss.item()

    def embed(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        pairs = [self.train[number] for number in numbers]
        questions, passages = self.model([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return questions, passages

    def distributed_loss(self, batch: Sequence[int]) -> Tensor:
        """The loss of the global batch, with only this worker's own vectors in the graph, as in DPR."""
        rank, size = self.gatherer.rank, self.options.batch_size
        questions, passages = self.embed(batch[rank * size : (rank + 1) * size])
        parts = self.gather([questions.detach(), passages.detach(), list(range(size))])
        all_questions = [part[0] for part in parts]
        all_passages = [part[1] for part in parts]
        all_questions[rank], all_passages[rank] = questions, passages
        positives = [r * size + index for r, part in enumerate(parts) for index in part[2]]
        return loss_of(torch.cat(all_questions), torch.cat(all_passages), torch.tensor(positives))

    def gather(self, objects: list[Any]) -> list[list[Any]]:
        self.last_gathered = objects
        return self.gatherer.all_gather(objects, tag="step")

    def sum_gradients(self) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    def compare_with_one_process(self, batch: Sequence[int]) -> tuple[float, float]:
        """Returns how far loss and summed gradient of all workers are from those of one process."""
        self.model.zero_grad()
        loss = self.distributed_loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.sum_gradients()
        summed = [parameter.grad.clone() for parameter in self.model.parameters() if parameter.grad is not None]
        self.model.zero_grad()
        alone = loss_of(*self.embed(batch), torch.arange(len(batch)))
        alone.backward()  # type: ignore[no-untyped-call]
        whole = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        gradient = max(float((a - b).abs().max()) for a, b in zip(summed, whole, strict=True))
        return abs(loss.item() - alone.item()), gradient

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Recall@10 on the held-out questions, each worker answering its share; on rank 0, None elsewhere."""
        rank, world_size = self.gatherer.rank, self.gatherer.world_size
        questions, passages = self.model([q for q, _ in self.held_out[rank::world_size]], [p for _, p in self.held_out])
        predictions: list[list[int]] = (questions @ passages.T).topk(10).indices.tolist()
        parts = self.gatherer.gather(predictions, dst=0, tag="predictions")
        return None if parts is None else recall_at_10(interleave(parts, total=len(self.held_out)))

    def compare_times(self) -> dict[str, float] | None:
        """Gathers the same step by ours, torch's and the seed's way in turn; on rank 0, seconds of each."""
        objects = self.last_gathered
        max_size = 2 * self.gatherer.stats.largest_slot_nbytes + self.options.slot_nbytes
        ways: dict[str, Callable[[], object]] = {
            "gather-core": lambda: self.gatherer.all_gather(objects),
            "torch all_gather_object": lambda: torch_all_gather_object(objects),
            "all_gather_list (the seed's algorithm)": lambda: seed_all_gather_list(objects, max_size),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(_COMPARED_STEPS):
            for name, way in ways.items():
                dist.barrier()
                started = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - started)
        parts = self.gatherer.gather(times, dst=0, tag="times")
        if parts is None:
            return None
        return {name: median(map(max, zip(*(part[name] for part in parts), strict=True))) for name in ways}
