"""The objects that real jobs gather, with contents made up: the same on every run for a rank, others on other ranks."""

from collections.abc import Callable
from importlib import import_module
from random import Random
from typing import Any

_NUM_PREDICTIONS = 5000
_NUM_TOKENS_OF_PREDICTION = 12
_NUM_SEQUENCES = 64
_VOCABULARY = 50_257
_NUM_DATA_ROWS = 20_000
_WIDTH = 256
_NUM_LAYERS = 2
_NUM_IMAGES = 32
_IMAGE_SIZE = 224
_CONFIG_DEPTH = 6
_WORDS = ("a", "about", "answer", "dense", "few", "in", "is", "many", "of", "passage", "question", "rank", "the", "to")


def metrics(rank: int) -> dict[str, Any]:
    """What a training loop logs: 159 bytes as a pickle."""
    return {
        "step": 12_000 + rank,
        "epoch": 3,
        "loss": 0.25 * (rank + 1),
        "accuracy": 0.875,
        "learning_rate": 1e-4,
        "grad_norm": 1.5,
        "samples_per_s": 512.5,
        "split": "train",
    }


def dpr_step(rank: int) -> list[Any]:
    """What one step of Dense Passage Retrieval gathers: 16 questions, 32 passages of 768 float32, and their ids."""
    import torch

    random = torch.Generator().manual_seed(rank)
    questions, passages = (torch.randn(number, 768, generator=random) for number in (16, 32))
    return [questions, passages, list(range(16)), list(range(16, 48))]


def predictions(rank: int) -> list[dict[str, Any]]:
    """What an evaluation gathers: 5,000 dicts of an id, a score, 12 token ids and a sentence."""
    random = Random(rank)
    return [
        {
            "id": rank * _NUM_PREDICTIONS + number,
            "score": random.random(),
            "tokens": [random.randrange(_VOCABULARY) for _ in range(_NUM_TOKENS_OF_PREDICTION)],
            "text": " ".join(random.choices(_WORDS, k=_NUM_TOKENS_OF_PREDICTION)),
        }
        for number in range(_NUM_PREDICTIONS)
    ]


def tokens(rank: int) -> list[list[int]]:
    """A batch of generated sequences: 64 lists of 32 to 512 token ids."""
    random = Random(rank)
    return [[random.randrange(_VOCABULARY) for _ in range(random.randint(32, 512))] for _ in range(_NUM_SEQUENCES)]


def dataframe(rank: int) -> Any:
    """Results of an evaluation as a pandas DataFrame: 20,000 rows of ids, losses, times, splits and names.

    Raises:
        ModuleNotFoundError: pandas is not installed.
    """
    import numpy as np

    try:
        pandas: Any = import_module("pandas")
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError("payload 'dataframe' needs pandas: pip install pandas") from exc
    random = np.random.default_rng(rank)
    splits = random.integers(3, size=_NUM_DATA_ROWS)
    return pandas.DataFrame(
        {
            "id": np.arange(_NUM_DATA_ROWS) + rank * _NUM_DATA_ROWS,
            "loss": random.random(_NUM_DATA_ROWS, dtype=np.float32),
            "seconds": random.exponential(size=_NUM_DATA_ROWS),
            "when": np.datetime64("2025-01-01") + random.integers(10**6, size=_NUM_DATA_ROWS).astype("m8[s]"),
            "split": pandas.Categorical.from_codes(splits, ["train", "dev", "test"]),
            "name": [f"example-{number:05}" for number in random.integers(10**5, size=_NUM_DATA_ROWS)],
        }
    )


def state_dict(rank: int) -> dict[str, Any]:
    """The weights of a small transformer, as `dict(model.state_dict())`: 24 float32 tensors, 6 MiB."""
    import torch

    random = torch.Generator().manual_seed(rank)
    return {
        f"layers.{layer}.{name}": torch.randn(shape, generator=random)
        for layer in range(_NUM_LAYERS)
        for name, shape in _SHAPES_OF_LAYER.items()
    }


_SHAPES_OF_LAYER = {
    "attention.in_proj_weight": (3 * _WIDTH, _WIDTH),
    "attention.in_proj_bias": (3 * _WIDTH,),
    "attention.out_proj.weight": (_WIDTH, _WIDTH),
    "attention.out_proj.bias": (_WIDTH,),
    "linear1.weight": (4 * _WIDTH, _WIDTH),
    "linear1.bias": (4 * _WIDTH,),
    "linear2.weight": (_WIDTH, 4 * _WIDTH),
    "linear2.bias": (_WIDTH,),
    "norm1.weight": (_WIDTH,),
    "norm1.bias": (_WIDTH,),
    "norm2.weight": (_WIDTH,),
    "norm2.bias": (_WIDTH,),
}


def images(rank: int) -> Any:
    """A batch of photographs: a uint8 tensor of shape (32, 3, 224, 224), smooth with some noise."""
    import torch

    random = torch.Generator().manual_seed(rank)
    ramp = torch.linspace(0, 200, _IMAGE_SIZE).to(torch.uint8)
    light = (ramp[:, None] // 2 + ramp[None, :] // 2).expand(_NUM_IMAGES, 3, -1, -1)
    return light + torch.randint(32, light.shape, dtype=torch.uint8, generator=random)


def config(rank: int) -> dict[str, Any]:
    """A deep nested configuration, as read from files: dicts, lists, texts, numbers, flags and nulls, 6 levels."""
    return _section(Random(rank), _CONFIG_DEPTH)


def _section(random: Random, depth: int) -> dict[str, Any]:
    section: dict[str, Any] = {
        "_target_": ".".join(random.choices(_WORDS, k=4)),
        "enabled": random.random() < 0.5,
        "rate": random.random(),
        "steps": random.randrange(10**6),
        "seed": None,
        "betas": [0.9, 0.999],
    }
    if depth > 1:
        section |= {name: _section(random, depth - 1) for name in ("model", "data", "callbacks")}
    return section


WORKLOADS: dict[str, Callable[[int], Any]] = {
    "metrics": metrics,
    "dpr_step": dpr_step,
    "predictions": predictions,
    "tokens": tokens,
    "dataframe": dataframe,
    "state_dict": state_dict,
    "images": images,
    "config": config,
}
"""Name -> what makes the object of a rank."""
