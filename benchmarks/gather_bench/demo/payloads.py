"""What the demo gathers, as payloads of the benchmark: made by its own code, before its first step of training."""

from collections.abc import Callable
from functools import cache
from typing import Any

_BATCH_SIZE = 32
_WORLD_SIZE = 4
"""The demo's own defaults; the latter where there is no job."""


def demo_step(rank: int) -> list[Any]:
    """What a rank gathers in a step: vectors of 32 questions and 32 passages, and which answers which."""
    from gather_bench.demo.training import part_of

    texts = _texts()[0]
    first = rank * _BATCH_SIZE % (len(texts) - _BATCH_SIZE)
    batch = slice(first, first + _BATCH_SIZE)
    return part_of(*_untrained_model()(texts.questions[batch], texts.passages[batch]))


def demo_predictions(rank: int) -> list[list[int]]:
    """What a rank gathers at evaluation: for its share of the 1,000 held-out questions, the first ten passages."""
    import torch.distributed as dist

    from gather_bench.demo.evaluation import predict

    world_size = dist.get_world_size() if dist.is_initialized() else _WORLD_SIZE
    return predict(_untrained_model(), _texts()[1], rank, world_size)


DEMO_PAYLOADS: dict[str, Callable[[int], Any]] = {"demo_step": demo_step, "demo_predictions": demo_predictions}
"""Name -> what makes the object of a rank."""


@cache
def _texts() -> tuple[Any, Any]:
    """Texts for training, and held out; to read them takes seconds."""
    from gather_bench.demo.corpus import collect_pairs, split
    from gather_bench.demo.features import features
    from gather_bench.demo.training import Texts

    train, held_out = (
        Texts([(features(pair.question), features(pair.passage)) for pair in pairs]) for pairs in split(collect_pairs())
    )
    return train, held_out


def _untrained_model() -> Any:
    """The model that every worker of the demo starts from."""
    import torch

    from gather_bench.demo.model import Retriever

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Retriever()
