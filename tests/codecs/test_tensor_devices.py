"""Where tensors land is the receiver's choice, whatever a header says, and whatever GPUs the sender had."""

import json
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from every_codec import EVERY
from gather_codecs.pickle5 import rebuild_tensor
from gather_core.codec import Codec, DecodeOptions
from gather_core.errors import DecodeError
from gather_core.registry import get_codec

ELEMENTS = np.arange(4, dtype="f4").tobytes()
SEVEN = "cuda:7"


@pytest.fixture(params=EVERY)
def codec(request: pytest.FixtureRequest) -> Codec:
    return get_codec(request.param)


class _Made:
    """Pickles as a call of `rebuild_tensor`."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return rebuild_tensor, self.arguments


def _pickled(*more: object) -> list[bytes]:
    return [pickle.dumps(_Made(ELEMENTS, torch.float32, (4,), False, *more), 5)]


def _packed(*more: object) -> list[bytes]:
    return [msgpack.packb(msgpack.ExtType(22, msgpack.packb(["float32", [4], False, ELEMENTS, *more])))]


def _raw(*more: object) -> list[bytes]:
    text = json.dumps(["tensor", "float32", [4], False, *more]).encode()
    return [struct.pack("<I", zlib.crc32(text)) + text, ELEMENTS]


HAND_MADE: dict[str, Callable[..., list[bytes]]] = {"pickle": _pickled, "msgpack": _packed, "raw": _raw}


@pytest.mark.plan(23)
@pytest.mark.parametrize("spec", HAND_MADE)
@pytest.mark.parametrize("device", [SEVEN, "cuda", "cuda:0", "meta"])
def test_a_header_that_names_a_device_is_refused(spec: str, device: str, land: Any, assert_same: Any) -> None:
    codec, make = get_codec(spec), HAND_MADE[spec]
    assert_same(codec.decode(land(make())), torch.arange(4.0))
    devices = [device, torch.device(device)] if spec == "pickle" else [device]
    for named in devices:
        more = [None, named] if spec == "pickle" else [named]  # behind the strides
        with pytest.raises(DecodeError):
            codec.decode(land(make(*more)))


@pytest.mark.plan(23)
def test_the_frames_of_a_tensor_name_no_device(codec: Codec) -> None:
    head = b"".join(bytes(memoryview(frame).cast("B")[:1000]) for frame in codec.encode(torch.ones(5000)))
    assert b"cuda" not in head
    assert b"cpu" not in head


@pytest.mark.plan(23)
def test_tensors_land_on_the_current_device_of_the_receiver(
    codec: Codec, roundtrip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = DecodeOptions(tensor_device="current")
    for device in (None, torch.device("meta")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda found=device: found)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        for tensor in (torch.ones(5000), torch.ones(3), torch.ones(40, 50).t()):
            here = roundtrip(codec, tensor, current).device.type
            assert here == ("cpu" if device is None else "meta")
            assert roundtrip(codec, tensor).device.type == "cpu"


@pytest.mark.plan(23)
def test_a_current_device_that_is_not_there_is_a_decode_error(codec: Codec, roundtrip: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 7)
    if torch.cuda.device_count() > 7:
        pytest.skip("there is a GPU of that number")
    with pytest.raises(DecodeError, match="tensor_device failed"):
        roundtrip(codec, torch.ones(5000), DecodeOptions(tensor_device="current"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.plan(23)
def test_tensors_of_a_gpu_land_on_the_cpu_or_on_the_current_gpu(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    for tensor in (torch.arange(5000.0), torch.ones(3).bfloat16(), torch.arange(2000.0).view(40, 50).t()):
        there = tensor.cuda()
        assert_same(roundtrip(codec, there), tensor)
        assert roundtrip(codec, there).device.type == "cpu"
        back = roundtrip(codec, there, DecodeOptions(tensor_device="current"))
        assert back.device == torch.device("cuda", torch.cuda.current_device())
        assert_same(back.cpu(), tensor)
