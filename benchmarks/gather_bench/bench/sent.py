"""The objects of one payload: what this rank hands in, and what must come out on every rank."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import torch.distributed as dist

from gather_bench.bench.agreement import attempt
from gather_bench.bench.payloads import Payload
from gather_bench.peers import torch_all_gather_object
from gather_core.exactness import difference, is_tensor, parts


@dataclass(frozen=True)
class Sent:
    """One payload, on one rank."""

    name: str
    obj: Any
    objects: Sequence[Any]
    """Of all ranks, as they must come out."""
    nbytes: int | None
    """Of the largest as a plain pickle; None where pickle cannot on some rank."""

    def first_difference(self, got: Sequence[Any]) -> str | None:
        """Says where a gathered list is not what it must be, on this rank."""
        if len(got) != len(self.objects):
            return f"{len(got)} objects came of {len(self.objects)} ranks"
        for rank, (one, other) in enumerate(zip(self.objects, got, strict=True)):
            if text := difference(other, one):
                return f"the object of rank {rank} came out different: {text}"
        return None


def send(name: str, payload: Payload) -> tuple[Sent | None, str | None]:
    """(all ranks) Makes the objects, and tells all ranks what must come out; or returns why some rank cannot."""
    made = attempt(lambda: _make(payload))
    if made.value is None or made.problem is not None:
        return None, f"the payload cannot be made: {made.problem}"
    obj, encoded = made.value
    gathered = torch_all_gather_object(encoded)
    loaded = attempt(lambda: [cloudpickle.loads(each) for each in gathered])
    if loaded.value is None or loaded.problem is not None:
        return None, f"the payload cannot be sent: {loaded.problem}"
    objects = loaded.value
    objects[dist.get_rank()] = obj
    sizes = torch_all_gather_object(_pickled_nbytes(obj))
    return Sent(name, obj, objects, None if None in sizes else max(sizes)), None


def _make(payload: Payload) -> tuple[Any, bytes]:
    """This rank's object, and as bytes, by value where pickle cannot name what is in it."""
    obj = payload(dist.get_rank())
    if any(map(_has_graph, parts(obj))):
        raise ValueError("it holds a tensor with a graph, of which each way keeps something else: detach() it")
    return obj, cloudpickle.dumps(obj)


def _has_graph(part: Any) -> bool:
    return is_tensor(part) and not part.is_leaf


def _pickled_nbytes(obj: Any) -> int | None:
    try:
        return len(pickle.dumps(obj))
    except Exception:
        return None
