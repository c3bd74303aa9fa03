"""Cloudpickle: pickles by value what pickle refers to by name."""

import io
import sys
from collections import ChainMap
from collections.abc import Callable
from typing import Any

import cloudpickle

from gather_codecs.pickle5 import Chunks, PickleCodec, of_this_python, out_of_band, reducers
from gather_core.codec import Frames


class CloudpickleCodec(PickleCodec):
    """As `pickle`, and also lambdas, closures, local classes and those of `__main__`, by value.

    What cloudpickle would make something else of is refused: a memoryview, which would arrive as bytes, an open file.
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


def _refuse(obj: Any) -> Any:
    """As pickle does, which raises a TypeError."""
    return obj.__reduce_ex__(5)


def _reduce_file(file: io.TextIOWrapper) -> Any:
    """The standard streams go by their names, and no other file."""
    if file is sys.stdout or file is sys.stderr:
        return cloudpickle.Pickler.dispatch_table[io.TextIOWrapper](file)
    return _refuse(file)


_REFUSED: dict[type, Callable[[Any], Any]] = {memoryview: _refuse, io.TextIOWrapper: _reduce_file}


class _TensorAwareCloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, *args: Any) -> None:
        # The C pickler reads its table while it is initialised.
        self.dispatch_table = ChainMap(reducers(), _REFUSED, cloudpickle.Pickler.dispatch_table)
        super().__init__(*args)
