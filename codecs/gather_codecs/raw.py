"""One bytes-like object, array or tensor as it lies in memory: no serializer, no copy.

Two frames, always: the head and the elements. The head is a CRC-32 of its rest (u32, little-endian), then a JSON list
in ASCII, whose first item says what follows:

```
["bytes"]
["bytearray"]
["memoryview", format, shape, readonly]         format: one native character of `struct`
["ndarray", dtype, shape, order, readonly]      order: "C" or "F"
["tensor", dtype, shape, requires_grad]         dtype: torch's name, such as "bfloat16"
```

How a numpy dtype is described, `dtypes.py` says.
"""

import json
import struct
import sys
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gather_codecs.dtypes import build_dtype, describe_dtype
from gather_codecs.tensors import (
    array_bytes,
    arrives_with_grad,
    build_array,
    build_tensor,
    check_shape,
    dtype_name,
    dtype_of,
    has_grad,
    is_plain_tensor,
    memory_order,
    place,
    tensor_bytes,
)
from gather_core.codec import Buffer, Codec, DecodeOptions, Frames, Trust, own
from gather_core.errors import DecodeError, EncodeError, summarize

if TYPE_CHECKING:
    import numpy as np
    import torch

_TAKES = "exactly one bytes, bytearray, memoryview, numpy.ndarray or dense torch.Tensor without attributes of its own"
_CHECKSUM = struct.Struct("<I")
_FORMATS = frozenset("?cbBhHiIlLqQnNfd")
"""What `memoryview.cast` gives back."""
_write_json = json.JSONEncoder(separators=(",", ":")).encode
_read_json = json.JSONDecoder().decode


class RawCodec(Codec):
    """Data only, and nothing around it: the elements travel from and into the memory that they live in.

    Takes exactly bytes, bytearray, C-contiguous memoryviews of native formats, numpy arrays without objects in them
    (records, strings and times too), and dense torch tensors; no subclasses of them, so no Parameter. A memoryview
    arrives as one of the same format and shape over memory of its own; arrays and memoryviews stay read-only where
    they were. Arrays whose elements lie scattered arrive row-major, Fortran order stays; tensors arrive row-major, and
    detached unless they are leaves, whose `requires_grad` stays. A leaf that has a `.grad` is refused.
    """

    name = "raw"
    trust = Trust.DATA

    def encode(self, obj: object) -> Frames:
        try:
            head, elements = _lower(obj)
        except EncodeError:
            raise
        except Exception as exc:
            raise EncodeError(f"raw cannot encode this {type(obj).__name__}: {summarize(exc)}") from exc
        return [_write_head(head), elements]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if len(frames) != 2:
            raise DecodeError(f"the raw codec writes 2 frames, not {len(frames)}")
        try:
            kind, *fields = _read_head(frames[0])
            return _REBUILD[kind](frames[1], options, *fields)
        except DecodeError:
            raise
        except Exception as exc:
            raise DecodeError(f"not what the raw codec writes: {summarize(exc)}") from exc


def _write_head(fields: list[Any]) -> bytes:
    text = _write_json(fields).encode("ascii")
    return _CHECKSUM.pack(zlib.crc32(text)) + text


def _read_head(head: memoryview) -> list[Any]:
    text = bytes(head[_CHECKSUM.size :])
    if len(head) <= _CHECKSUM.size or zlib.crc32(text) != _CHECKSUM.unpack_from(head)[0]:
        raise DecodeError(f"the {len(head)} bytes of the raw head do not have its checksum")
    fields = _read_json(text.decode("ascii"))
    if type(fields) is not list:
        raise DecodeError("the raw head is no list")
    return fields


def _lower(obj: Any) -> tuple[list[Any], Buffer]:
    """The fields of the head, and the elements."""
    kind = type(obj)
    if kind is bytes or kind is bytearray:
        return [kind.__name__], obj
    if kind is memoryview:
        return _lower_view(obj)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        head = ["ndarray", _lower_dtype(obj.dtype), obj.shape, memory_order(obj), not obj.flags.writeable]
        return head, array_bytes(obj).data
    if is_plain_tensor(obj):
        if has_grad(obj):
            raise EncodeError("raw would lose the .grad of this tensor; send it detached, or use pickle")
        head = ["tensor", dtype_name(obj.dtype), tuple(obj.shape), arrives_with_grad(obj)]
        return head, tensor_bytes(obj).raw()
    name = f"{kind.__module__}.{kind.__qualname__}"
    raise EncodeError(f"raw takes {_TAKES}, and not this {name}; convert it, or use pickle or msgpack")


def _lower_view(view: memoryview) -> tuple[list[Any], Buffer]:
    shape = view.shape or ()
    if view.format not in _FORMATS or not view.c_contiguous or (len(shape) > 1 and 0 in shape):
        raise EncodeError(
            f"raw takes C-contiguous memoryviews of one native format, not shape {shape} with strides "
            f"{view.strides} of {view.format!r}; use its tobytes(), or numpy.ascontiguousarray of it"
        )
    return ["memoryview", view.format, shape, view.readonly], view.cast("B")


def _lower_dtype(dtype: "np.dtype[Any]") -> Any:
    try:
        return describe_dtype(dtype)
    except ValueError as exc:
        raise EncodeError(f"raw keeps no array of dtype {dtype!r:.200} exactly; convert it, or use pickle") from exc


def _rebuild_bytes(frame: memoryview, options: DecodeOptions) -> bytes:
    return bytes(frame)


def _rebuild_bytearray(frame: memoryview, options: DecodeOptions) -> bytearray:
    return bytearray(frame)


def _rebuild_view(frame: memoryview, options: DecodeOptions, code: str, shape: Any, readonly: bool) -> memoryview:
    if code not in _FORMATS:
        raise DecodeError(f"memoryview format {code!r:.40} is not a native one")
    sizes = check_shape(shape, struct.calcsize(code), len(frame))
    memory = own(frame)
    view = memory.cast(code, sizes) if frame.nbytes else memory.cast(code)  # type: ignore[call-overload]
    return view.toreadonly() if readonly else view  # type: ignore[no-any-return]


def _rebuild_array(
    frame: memoryview, options: DecodeOptions, dtype: Any, shape: Any, order: str, readonly: bool
) -> "np.ndarray[Any, Any]":
    array = build_array(own(frame), build_dtype(dtype), shape, order)
    array.flags.writeable = not readonly
    return array


def _rebuild_tensor(
    frame: memoryview, options: DecodeOptions, dtype: Any, shape: Any, requires_grad: bool
) -> "torch.Tensor":
    tensor = place(build_tensor(own(frame), dtype_of(dtype), shape), options.tensor_device)
    return tensor.requires_grad_() if requires_grad else tensor


_REBUILD: dict[object, Any] = {
    "bytes": _rebuild_bytes,
    "bytearray": _rebuild_bytearray,
    "memoryview": _rebuild_view,
    "ndarray": _rebuild_array,
    "tensor": _rebuild_tensor,
}
