"""Which types the decoders of DATA codecs may build."""

import datetime as dt
import pathlib
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from fuzz.seeds import REGISTERED

_TYPES: frozenset[type] = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, list, tuple, dict, set, frozenset),
        *(slice, range, OrderedDict, Counter, Decimal, Fraction, uuid.UUID, dt.datetime, dt.date, dt.time),
        *(dt.timedelta, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath),
        *(torch.Tensor, torch.dtype, torch.device, torch.Size, np.ndarray, *REGISTERED),
    }
)
_NUMBERS_AND_TIMES = "biufcmM"
_KINDS = {"raw": _NUMBERS_AND_TIMES + "SUV", "msgpack": _NUMBERS_AND_TIMES + "SUV"}
"""Per serializer, the kinds of numpy dtypes; numbers and times where it is not named."""


def foreign_type(obj: object, spec: str) -> str | None:
    """Names a type inside the object that no decoder of that codec may build; None if there is none."""
    kinds = _KINDS.get(spec.partition("+")[0], _NUMBERS_AND_TIMES)
    return next((str(found) for part in _parts(obj) if (found := _foreign(part, kinds)) is not None), None)


def _foreign(part: Any, kinds: str) -> object:
    dtype = part if isinstance(part, np.dtype) else part.dtype if isinstance(part, np.ndarray | np.generic) else None
    if dtype is not None and (dtype.kind not in kinds or dtype.hasobject):
        return dtype
    is_allowed = type(part) in _TYPES or isinstance(part, np.dtype | np.generic)
    return None if is_allowed else type(part)


def _parts(obj: object) -> Iterator[object]:
    stack = [obj]
    while stack:
        part = stack.pop()
        yield part
        if isinstance(part, dict):
            stack += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            stack += part
        elif isinstance(part, slice):
            stack += [part.start, part.stop, part.step]
        elif type(part) in REGISTERED and hasattr(part, "__dict__"):
            stack += [value for name, value in vars(part).items() if not name.startswith("_")]
