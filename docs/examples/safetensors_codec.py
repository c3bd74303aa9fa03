"""A codec for dicts of named tensors: its frames, one after the other, are a .safetensors file."""

import json
from collections.abc import Sequence

import torch

from gather_codecs.tensors import build_tensor, is_plain_tensor, place, tensor_bytes
from gather_core import Codec, DecodeError, DecodeOptions, EncodeError, Frames, Trust, own

CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
DTYPES = {code: dtype for dtype, code in CODES.items()}


class SafetensorsCodec(Codec):
    name = "safetensors"
    trust = Trust.DATA  # whatever the bytes are, decoding builds tensors and nothing else

    def encode(self, obj: object) -> Frames:
        if type(obj) is not dict or "__metadata__" in obj:
            raise EncodeError(f"safetensors takes a dict of tensors, none of them __metadata__, not {type(obj)}")
        header, buffers, stop = {}, [], 0
        for key, tensor in obj.items():
            if type(key) is not str or not is_plain_tensor(tensor) or tensor.requires_grad or tensor.dtype not in CODES:
                raise EncodeError(f"safetensors takes detached tensors of {[*DTYPES]} named by a str; convert {key!r}")
            buffers.append(tensor_bytes(tensor).raw())  # not copied where it is contiguous and on the CPU
            start, stop = stop, stop + buffers[-1].nbytes
            header[key] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        text = json.dumps(header).encode()
        return [len(text).to_bytes(8, "little") + text, *buffers]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:
        header, end = json.loads(bytes(frames[0][8:])), 8 + int.from_bytes(frames[0][:8], "little")
        if len(frames[0]) != end:
            raise DecodeError(f"the header is {len(frames[0])} bytes long and not {end}, as it says")
        return {
            key: place(build_tensor(own(frame), DTYPES[entry["dtype"]], entry["shape"]), options.tensor_device)
            for (key, entry), frame in zip(header.items(), frames[1:], strict=True)  # a frame for each
        }
