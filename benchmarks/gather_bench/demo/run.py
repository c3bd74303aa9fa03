"""What every worker does, in order: measure, train, measure again."""

import time
from functools import partial

import torch
import torch.distributed as dist

from gather_bench.demo.evaluation import compare_with_one_process, recall_at_10
from gather_bench.demo.job import JobFolder, Options, Result
from gather_bench.demo.progress import TrainingProgress
from gather_bench.demo.timing import compare_gather_times
from gather_bench.demo.training import Texts, Trainer
from gather_core import Gatherer

_TIMEOUT_S = 60


def run(folder: JobFolder) -> None:
    """(all ranks) Does the job of the folder; rank 0 leaves the result there."""
    torch.set_num_threads(1)
    options, train, held_out = folder.read_job()
    dist.init_process_group("gloo")
    try:
        result = _train_and_measure(options, Texts(train), Texts(held_out))
        if result is not None:
            folder.write_result(result)
    finally:
        dist.destroy_process_group()


def _train_and_measure(options: Options, train: Texts, held_out: Texts) -> Result | None:
    """(all ranks) Returns the result on rank 0, None elsewhere.

    What is not a training step goes through a Gatherer of its own, so that the first one counts nothing but steps.
    """
    make_gatherer = partial(Gatherer, options.codec, options.transport, timeout_s=_TIMEOUT_S)
    with make_gatherer(slot_nbytes=options.slot_nbytes) as gatherer, make_gatherer() as others:
        trainer = Trainer(train, gatherer, options.batch_size)
        agreement = compare_with_one_process(trainer, trainer.batches(0)[0], others)
        recall_before = recall_at_10(trainer.model, held_out, others)
        started = time.perf_counter()
        _train(trainer, options.epochs, gatherer.rank)
        train_s = time.perf_counter() - started
        recall_after = recall_at_10(trainer.model, held_out, others)
        stats = gatherer.stats
        description, num_gathers, num_second_rounds = gatherer.describe(), stats.operations, stats.second_rounds
        sent_nbytes = sum(others.all_gather(stats.sent_nbytes, tag="sent"))
        fitting_nbytes = max(stats.largest_slot_nbytes, gatherer.slot_nbytes)
        with make_gatherer(slot_nbytes=fitting_nbytes) as fitting:
            gather_s = compare_gather_times(trainer.last_gathered, gatherer, fitting)
        if recall_before is None or recall_after is None:
            return None
        return Result(
            description=description,
            recall_before=recall_before,
            recall_after=recall_after,
            loss_difference=agreement.loss_difference,
            gradient_difference=agreement.gradient_difference,
            largest_gradient=agreement.largest_gradient,
            train_s=train_s,
            nbytes_per_step=sent_nbytes / num_gathers,
            rounds_per_step=1 + num_second_rounds / num_gathers,
            fitting_slot_nbytes=fitting.slot_nbytes,
            gather_s=gather_s,
        )


def _train(trainer: Trainer, epochs: int, rank: int) -> None:
    with TrainingProgress(rank, epochs, len(trainer.batches(0))) as progress:
        for epoch in range(epochs):
            for batch in trainer.batches(epoch):
                progress.step(trainer.step(batch))
