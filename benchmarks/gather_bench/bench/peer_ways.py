"""What a payload is also gathered with in the same run: what gather-core replaces, and parts of it for scale."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from gather_bench.bench.agreement import largest
from gather_bench.bench.results import BASELINE
from gather_bench.bench.ways import ReadyWay
from gather_bench.looking import looked_at
from gather_bench.peers import KeptBuffer, seed_all_gather_list, seed_nbytes, torch_all_gather_object


class TorchObjects(ReadyWay):
    """torch.distributed.all_gather_object: two collectives, of sizes and of padded pickles."""

    def __init__(self, obj: Any) -> None:
        self.encoded_nbytes = len(pickle.dumps(obj))
        self._obj = obj

    def __call__(self) -> Any:
        """Pickles, gathers, unpickles, and looks at what has come."""
        return looked_at(torch_all_gather_object(self._obj))


class SeedList(ReadyWay):
    """The algorithm of DPR's and fairseq's `all_gather_list`, with the least `max_size` that fits."""

    def __init__(self, obj: Any) -> None:
        self.encoded_nbytes = seed_nbytes(obj)
        self._obj = obj
        self._max_size = 0
        self._kept = KeptBuffer()

    def __call__(self) -> Any:
        """Pickles, reduces, unpickles, and looks at what has come."""
        self._max_size = self._max_size or largest(self.encoded_nbytes)
        return looked_at(seed_all_gather_list(self._obj, self._max_size, kept=self._kept))


class RawCollective(ReadyWay):
    """One all-gather of the pickled bytes, neither encoded nor decoded: what torch's collective alone costs."""

    def __init__(self, obj: Any) -> None:
        self._payload = pickle.dumps(obj)
        self.encoded_nbytes = len(self._payload)
        self._padded = self._gathered = torch.empty(0, dtype=torch.uint8)

    def __call__(self) -> Any:
        """Gathers the bytes of all ranks into the same memory each time."""
        if not len(self._padded):
            self._set_up()
        _all_gather(self._gathered, self._padded)
        return self._gathered

    def _set_up(self) -> None:
        nbytes = largest(self.encoded_nbytes)
        self._padded = torch.zeros(nbytes, dtype=torch.uint8)
        self._padded[: self.encoded_nbytes] = torch.frombuffer(bytearray(self._payload), dtype=torch.uint8)
        self._gathered = torch.zeros(dist.get_world_size() * nbytes, dtype=torch.uint8)

    def objects(self, returned: Any) -> list[Any]:
        """A pickle says itself where it ends."""
        return [pickle.loads(part.numpy().data) for part in returned.chunk(dist.get_world_size())]


class RawCopy(ReadyWay):
    """Copies the pickled bytes of all ranks once, inside each process, into memory that it has touched."""

    def __init__(self, obj: Any) -> None:
        self._collective = RawCollective(obj)
        self.encoded_nbytes = self._collective.encoded_nbytes
        self._source = self._target = torch.empty(0, dtype=torch.uint8)

    def __call__(self) -> Any:
        """Copies what the first call has gathered."""
        if not len(self._source):
            self._source = self._collective().clone()
            self._target = torch.zeros_like(self._source)
        return self._target.copy_(self._source)

    def objects(self, returned: Any) -> list[Any]:
        """As those of the collective."""
        return self._collective.objects(returned)


PEERS: Mapping[str, Callable[[Any], ReadyWay]] = {
    BASELINE: TorchObjects,
    "all_gather_list": SeedList,
    "raw_collective": RawCollective,
    "raw_copy": RawCopy,
}
"""Name -> what makes it ready for an object, on one rank alone; the first call is collective and not timed."""

_all_gather: Callable[[torch.Tensor, torch.Tensor], object] = getattr(
    dist, "all_gather_single", dist.all_gather_into_tensor
)
"""The best that the installed torch has."""
