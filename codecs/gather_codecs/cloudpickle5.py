"""Cloudpickle: pickles by value what pickle refers to by name."""

import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable
from typing import Any

import cloudpickle

from gather_codecs.pickle5 import Encoder, Idle, PickleCodec, of_this_python, reducers
from gather_codecs.pickle_heads import Chunks


class CloudpickleCodec(PickleCodec):
    """As `pickle`, and also lambdas, closures, local classes and those of `__main__`, by value.

    What cloudpickle would make something else of is refused: a memoryview, which would arrive as bytes, an open file.
    All ranks must run the same version of Python, because the code itself travels; the fingerprint contains it.
    """

    name = "cloudpickle"
    _idle = Idle()

    def fingerprint(self) -> str:
        return of_this_python(self.spec)

    def _new_encoder(self) -> Encoder:
        return _Encoder()


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


class _Encoder(Encoder):
    _pickler: _TensorAwareCloudPickler

    def _make_pickler(self, file: Chunks, buffer_callback: Callable[[pickle.PickleBuffer], bool]) -> pickle.Pickler:
        return _TensorAwareCloudPickler(file, 5, buffer_callback)

    def starts_over(self) -> bool:
        # It remembers the globals of functions that it has sent by value, which belong to one object.
        return not self._pickler.globals_ref and super().starts_over()
