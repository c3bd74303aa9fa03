"""The comparisons of `codec_ratios.py`: payloads, what a codec does with them, the bare library beside it, bounds."""

import functools
import pickle
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch

from gather_core.codec import DecodeOptions
from gather_core.codec_border import CodecBorder
from gather_core.registry import get_codec
from gather_core.testing.codec_frames import Landed, as_views

Way = Callable[[], object]
_WORDS = ["gather", "every", "rank", "of", "the", "job", "loss", "is", "small", "today", "and", "tokens"]


@dataclass(frozen=True)
class Bound:
    """What is wanted of one comparison."""

    max_ratio: float | None = None
    """Of our time to the bare library's."""
    max_added_s: float | None = None
    """Our time less the bare library's."""
    max_s: float | None = None
    """Our time."""

    def is_met(self, ours_s: float, ratio: float, added_s: float) -> bool:
        """Whether these are within any that is given."""
        pairs = ((ratio, self.max_ratio), (added_s, self.max_added_s), (ours_s, self.max_s))
        return any(bound is not None and value <= bound for value, bound in pairs)

    def __str__(self) -> str:
        texts = []
        if self.max_ratio is not None:
            texts.append(f"at most {self.max_ratio:g} of it")
        if self.max_added_s is not None:
            texts.append(f"at most {self.max_added_s * 1e6:g} us more")
        if self.max_s is not None:
            texts.append(f"under {self.max_s * 1e6:g} us")
        return " or ".join(texts)


@dataclass(frozen=True)
class Case:
    """One codec and one payload: what is timed, and against what."""

    codec: str
    payload: str
    call: str
    ours: Way
    bare: Way
    bound: Bound


_NO_SLOWER = Bound(max_ratio=1.03, max_added_s=2e-6)
"""Of what takes microseconds, 3 % are less than a call of a function."""
_A_QUARTER = Bound(max_ratio=0.25)
_NEAR = Bound(max_ratio=1.15)
_LITTLE_MORE = Bound(max_added_s=2e-6)
_NO_COPY = Bound(max_s=50e-6)


def metrics() -> dict[str, Any]:
    """What a training loop logs: 10 numbers."""
    return {f"metric_{number}": number * 1.5 for number in range(10)}


def tensors() -> list[torch.Tensor]:
    """One step of Dense Passage Retrieval: 48 and 96 KiB of float32."""
    return [torch.randn(16, 768), torch.randn(32, 768)]


def predictions() -> list[dict[str, Any]]:
    """5,000 of a model that writes text."""
    draw = random.Random(0)
    return [
        {
            "id": number,
            "score": draw.random(),
            "tokens": [draw.randrange(50_000) for _ in range(12)],
            "text": " ".join(draw.choices(_WORDS, k=12)),
        }
        for number in range(5000)
    ]


def tokens() -> list[list[int]]:
    """A batch of 256 sequences."""
    draw = random.Random(0)
    return [[draw.randrange(50_000) for _ in range(draw.randrange(64, 512))] for _ in range(256)]


def config() -> dict[str, Any]:
    """A nested configuration of a run."""
    layer = {"hidden": 768, "heads": 12, "dropout": 0.1, "bias": True, "init": None, "activation": "gelu"}
    return {
        "model": {"name": "bert", "layers": [{**layer, "index": index} for index in range(12)]},
        "optimizer": {"name": "adamw", "lr": 1e-4, "schedule": {"warmup": 1000, "kind": "cosine"}},
        "data": {"paths": [f"/data/shard-{index:05}.parquet" for index in range(64)], "seed": 0},
    }


def state_dict() -> dict[str, torch.Tensor]:
    """The parameters of a small transformer."""
    layer = torch.nn.TransformerEncoderLayer(128, 4, 512)
    return dict(torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).state_dict())


def images() -> dict[str, np.ndarray[Any, Any]]:
    """A batch of 32 images with their labels."""
    return {"images": np.full((32, 3, 224, 224), 7, np.uint8), "labels": np.arange(32)}


def large() -> np.ndarray[Any, Any]:
    """16 MiB of int64."""
    return np.arange(2 << 20, dtype=np.int64)


_PAYLOADS: Mapping[str, Callable[[], Any]] = {
    maker.__name__: maker for maker in (metrics, tensors, predictions, tokens, config, state_dict, images, large)
}
_PICKLES = ("pickle", "auto", "cloudpickle")
_dumps = functools.partial(pickle.dumps, protocol=5)


def cases(codecs: Collection[str] | None = None, payloads: Collection[str] | None = None) -> Iterator[Case]:
    """Makes the cases, one payload after the other, as they are asked for; None is all."""
    for name, make in _PAYLOADS.items():
        if not payloads or name in payloads:
            yield from _cases_of(name, make(), codecs)


def _cases_of(name: str, obj: Any, codecs: Collection[str] | None) -> Iterator[Case]:
    for codec in _PICKLES:
        if not codecs or codec in codecs:
            yield from _against_pickle(codec, name, obj, _bound_of_pickle(name))
    if name == "tensors" and (not codecs or "msgpack" in codecs):
        yield from _against_pickle("msgpack", name, obj, _A_QUARTER)
    if name == "tensors" and (not codecs or "raw" in codecs):
        yield from _against_pickle("raw", "one tensor", obj[1], _A_QUARTER)
    if name == "large" and (not codecs or "raw" in codecs):
        yield from _against_pickle("raw", name, obj, _NO_SLOWER)
    for codec in ("pickle", "auto", "cloudpickle", "raw", "msgpack"):
        if name == "large" and (not codecs or codec in codecs):
            yield Case(codec, name, "encode", _encode(codec, obj), lambda: _dumps(obj), _NO_COPY)
    if name in ("metrics", "predictions") and (not codecs or "msgpack" in codecs):
        yield from _against_msgpack(name, obj)


def _bound_of_pickle(name: str) -> Bound:
    return {"metrics": _LITTLE_MORE, "tensors": _A_QUARTER}.get(name, _NO_SLOWER)


def _against_pickle(codec: str, name: str, obj: Any, bound: Bound) -> list[Case]:
    data = _dumps(obj)
    return [
        Case(codec, name, "encode", _encode(codec, obj), lambda: pickle.dumps(obj, protocol=5), bound),
        Case(codec, name, "decode", _decode(codec, obj), lambda: pickle.loads(data), bound),
    ]


def _against_msgpack(name: str, obj: Any) -> list[Case]:
    data = msgpack.packb(obj)
    encode, decode = _encode("msgpack", obj), _decode("msgpack", obj)
    if name == "metrics":
        return [
            Case("msgpack", name, "encode", encode, lambda: msgpack.packb(obj), _LITTLE_MORE),
            Case("msgpack", name, "decode", decode, lambda: msgpack.unpackb(data), _LITTLE_MORE),
        ]
    return [
        Case(
            "msgpack",
            name,
            "encode+decode",
            lambda: (encode(), decode()),
            lambda: (msgpack.packb(obj), msgpack.unpackb(data)),
            _NEAR,
        )
    ]


def _border(codec: str) -> CodecBorder:
    return CodecBorder(get_codec(codec), DecodeOptions())


def _encode(codec: str, obj: Any) -> Way:
    encode = _border(codec).encode
    return lambda: encode(obj)


def _decode(codec: str, obj: Any) -> Way:
    decode, frames = _border(codec).decode, Landed(as_views(_border(codec).encode(obj))).views
    return lambda: decode(0, frames)
