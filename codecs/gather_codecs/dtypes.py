"""Numpy dtypes as plain data and back, for the codecs that only build data; `numpy.dtype` sees no text of the sender's.

A description is the dtype's code ("<f4", "<M8[ns]", "|S5"); for a subarray the list [description, shape]; for records a
dict of "names", "formats" (descriptions), "offsets", "itemsize" and "aligned". It is part of the wire.
"""

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Description = str | list[Any] | dict[str, Any]

_PLAIN_DTYPE = re.compile(
    r"[<>|](b1|[iu][1248]|f[248]|c(8|16)|[mM]8(\[([1-9]\d{0,8})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)", re.ASCII
)
_FLEXIBLE_DTYPE = re.compile(r"\|[SV][1-9]\d{0,9}|[<>]U[1-9]\d{0,8}", re.ASCII)
_RECORD_KEYS = {"names", "formats", "offsets", "itemsize", "aligned"}
_text_of = json.JSONEncoder().encode


def describe_dtype(dtype: "np.dtype[Any]") -> Description:
    """What `build_dtype` makes an equal dtype of.

    Raises:
        ValueError: There is no such description: it holds objects, titles, metadata, long doubles or nothing at all.
    """
    code = _plain_code(dtype)
    if code is not None:
        return code
    description = _describe(dtype)
    if build_dtype(description) != dtype:  # such as titles of fields
        raise _refused(dtype)
    return description


def build_dtype(description: object) -> "np.dtype[Any]":
    """The inverse of `describe_dtype`, for whatever was received; allocates nothing of the size that it describes.

    Raises:
        ValueError: It describes no dtype of plain numbers, times, text, bytes or records of them.
    """
    try:
        built = _build(description)
        # Once, at the outermost level: at each, a nested record would be described as often as it is deep.
        is_canonical = type(description) is str or _text_of(_describe(built)) == _text_of(description)
    except ValueError:
        raise
    except Exception as exc:
        raise ValueError(f"{description!r:.80} is no dtype: {type(exc).__name__}") from exc
    if not is_canonical:
        raise ValueError(f"{description!r:.80} is not how a dtype is described")
    return built


def _plain_code(dtype: "np.dtype[Any]") -> str | None:
    """The code of a dtype of plain numbers or times, or None."""
    import numpy as np

    code: str = dtype.str
    return code if _PLAIN_DTYPE.fullmatch(code) and np.dtype(code) == dtype and not dtype.metadata else None


def _describe(dtype: "np.dtype[Any]") -> Description:
    import numpy as np

    if dtype.metadata or dtype.hasobject:
        raise _refused(dtype)
    if dtype.subdtype is not None:
        return [_describe(dtype.base), list(dtype.shape)]
    if dtype.names is None:
        return dtype.str
    if dtype.type is not np.void or dtype.fields is None:
        raise _refused(dtype)
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [_describe(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def _refused(dtype: "np.dtype[Any]") -> ValueError:
    return ValueError(f"numpy dtype {dtype!s:.200} is not one of plain numbers, times, text, bytes or records of them")


def _build(description: Any) -> "np.dtype[Any]":
    import numpy as np

    if type(description) is str:
        if not _PLAIN_DTYPE.fullmatch(description) and not _FLEXIBLE_DTYPE.fullmatch(description):
            raise ValueError(f"numpy dtype {description!r:.40} is not one of plain numbers, times, text or bytes")
        return np.dtype(description)
    if type(description) is list:
        base, shape = description
        return np.dtype((_build(base), tuple(shape)))
    if type(description) is not dict or description.keys() != _RECORD_KEYS or description["itemsize"] == 0:
        raise ValueError(f"{description!r:.80} is no dtype")
    formats = [_build(item) for item in description["formats"]]
    # Numpy checks that the fields lie within the item, and lets them overlap: without objects in them, that is safe.
    record: Any = {key: description[key] for key in ("names", "offsets", "itemsize")}
    built: np.dtype[Any] = np.dtype(record | {"formats": formats}, align=description["aligned"] is True)
    return built
