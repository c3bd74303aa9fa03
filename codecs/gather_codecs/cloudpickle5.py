"""Cloudpickle: pickles by value what pickle refers to by name."""

from collections import ChainMap
from typing import Any

import cloudpickle

from gather_codecs.pickle5 import Chunks, PickleCodec, of_this_python, out_of_band, reducers
from gather_core.codec import Frames


class CloudpickleCodec(PickleCodec):
    """As `pickle`, and also lambdas, closures, local classes and those of `__main__`, by value.

    All ranks must run the same version of Python, because the code itself travels; the fingerprint contains it.
    """

    name = "cloudpickle"

    def fingerprint(self) -> str:
        return of_this_python(self.spec)

    def encode(self, obj: object) -> Frames:
        buffers: list[Any] = []
        head = Chunks()
        _TensorAwareCloudPickler(head, 5, out_of_band(buffers)).dump(obj)
        return [*head.frames(), *buffers]


class _TensorAwareCloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, *args: Any) -> None:
        # The C pickler reads its table while it is initialised.
        self.dispatch_table = ChainMap(reducers(), cloudpickle.Pickler.dispatch_table)
        super().__init__(*args)
