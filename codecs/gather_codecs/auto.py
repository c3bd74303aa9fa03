"""Pickle, and cloudpickle for what pickle cannot name."""

import pickle

from gather_codecs.pickle5 import PickleCodec, of_this_python
from gather_core.codec import Frames
from gather_core.errors import EncodeError, summarize

_CANNOT_PICKLE = (pickle.PicklingError, AttributeError, TypeError)
"""What pickle raises for lambdas, local classes, modules and the like."""


class AutoCodec(PickleCodec):
    """As `pickle`; where pickle cannot, the whole object once more as `cloudpickle`.

    What pickle can encode costs what it costs there, and travels by name: classes and functions of `__main__` too,
    which every rank must then have. Both formats are pickles, so decoding is one.

    An object that fails in another way than pickle itself does (ValueError from its `__reduce__`, RecursionError,
    MemoryError) is not tried again, as it would fail again; one whose `__reduce__` raises TypeError or AttributeError
    is asked twice. All ranks must run the same version of Python, as with cloudpickle.
    """

    name = "auto"

    def fingerprint(self) -> str:
        return of_this_python(self.spec)

    def encode(self, obj: object) -> Frames:
        try:
            return super().encode(obj)
        except _CANNOT_PICKLE as by_name:
            # A failed pickler is never used again, and the frames that it had collected went with it.
            try:
                # Imported where it is needed: most jobs never do.
                from gather_codecs.cloudpickle5 import CloudpickleCodec

                return CloudpickleCodec().encode(obj)
            except Exception as by_value:
                raise EncodeError(
                    f"auto cannot encode this {type(obj).__name__}: pickle: {summarize(by_name)}; "
                    f"cloudpickle: {summarize(by_value)}"
                ) from by_value
