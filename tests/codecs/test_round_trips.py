"""Every codec: exact round trips, or a refusal that says what and where."""

import copy
import pickle
from collections import defaultdict
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gather_core import DecodeError, EncodeError, LimitError, Trust
from gather_core.codec import Codec, DecodeOptions, Limits
from gather_core.exactness import difference
from gather_core.registry import get_codec
from gather_core.testing.codec_frames import Landed, as_views

CODECS = ["pickle", "cloudpickle", "msgpack", "pickle+zstd", "msgpack+zstd:level=3"]


def round_trip(codec: Codec, obj: Any) -> Any:
    landed = Landed(as_views(codec.encode(obj)))
    result = codec.decode(landed.views)
    landed.overwrite()
    return result


def same(a: Any, b: Any) -> bool:
    return difference(a, b) is None


@pytest.mark.parametrize("spec", CODECS)
def test_a_view_ships_its_elements_and_not_its_storage(spec: str) -> None:
    big = torch.arange(1_000_000.0)
    assert sum(len(memoryview(frame).cast("B")) for frame in get_codec(spec).encode(big[:3])) < 1024


@pytest.mark.parametrize("spec", ["pickle", "cloudpickle"])
def test_a_tensor_that_is_shared_is_sent_once_and_stays_shared(spec: str) -> None:
    tensor = torch.randn(5000)
    first, second = round_trip(get_codec(spec), [tensor, tensor])
    assert first is second
    parameter = round_trip(get_codec(spec), torch.nn.Parameter(tensor, requires_grad=False))
    assert type(parameter) is torch.nn.Parameter
    assert not parameter.requires_grad


def test_a_contiguous_array_is_not_copied_by_encode() -> None:
    array = np.arange(100_000)
    frame = np.frombuffer(get_codec("pickle").encode(array)[1], np.uint8)
    assert np.shares_memory(array, frame)


@pytest.mark.parametrize("spec", ["pickle", "msgpack"])
def test_decoded_arrays_are_writable_unless_pickle_says_that_they_were_not(spec: str) -> None:
    array = np.arange(10_000)
    result = round_trip(get_codec(spec), array)
    result[0] = 5
    assert result[0] == 5
    array.flags.writeable = False
    assert round_trip(get_codec(spec), array).flags.writeable == (spec == "msgpack")


def test_cloudpickle_takes_lambdas() -> None:
    factor = 3
    assert round_trip(get_codec("cloudpickle"), lambda x: x * factor)(5) == 15


@pytest.mark.parametrize(
    ("obj", "path"),
    [
        (defaultdict(int), r"\$:"),
        ({"batch": [0, {"meta": object()}]}, r"\$\.batch\[1\]\.meta"),
        ([memoryview(b"x")], r"\$\[0\]"),
        (np.array([None]), r"\$: numpy dtype object"),
        ({object(): 1}, "key of"),
        (torch.ones(2).to_sparse(), r"\$:"),
    ],
)
def test_msgpack_refuses_what_it_cannot_keep_and_says_where(obj: Any, path: str) -> None:
    with pytest.raises(EncodeError, match=path):
        get_codec("msgpack").encode(obj)


def test_msgpack_refuses_cycles() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(EncodeError, match="cycle"):
        get_codec("msgpack").encode(cycle)


@given(st.binary(max_size=200))
def test_hostile_bytes_are_an_object_or_a_decode_error(data: bytes) -> None:
    for codec in (get_codec("msgpack"), get_codec("msgpack+zstd")):
        for frames in ([data], [data, data], [(1 << 64).to_bytes(9, "little")[:8], data]):
            with suppress(DecodeError, LimitError):
                codec.decode([memoryview(frame) for frame in frames])


@given(st.data())
def test_a_damaged_message_is_an_object_or_a_decode_error(data: st.DataObject) -> None:
    codec = get_codec("msgpack")
    frames = [bytearray(memoryview(f).cast("B")) for f in codec.encode([(1, {2}), np.arange(3), torch.ones(2), 2**70])]
    position = data.draw(st.integers(0, len(frames[0]) - 1))
    frames[0][position] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        codec.decode([memoryview(frame) for frame in frames])


def test_a_zstd_bomb_is_refused_before_memory_is_taken_for_it() -> None:
    codec = get_codec("pickle+zstd")
    frames = [bytearray(memoryview(frame).cast("B")) for frame in codec.encode(bytes(10_000_000))]
    views = [memoryview(frame) for frame in frames]
    with pytest.raises(LimitError):
        codec.decode(views, DecodeOptions(limits=Limits(frame_nbytes=1_000_000)))
    at = frames[0].index((10_000_000).to_bytes(8, "little"))
    frames[0][at : at + 8] = (5_000_000).to_bytes(8, "little")
    with pytest.raises(DecodeError, match="10000"):
        codec.decode(views)


def test_trust_is_what_the_codec_inside_declares() -> None:
    assert get_codec("msgpack+zstd").trust is Trust.DATA
    assert get_codec("pickle+zstd").trust is Trust.CODE
    assert get_codec("msgpack+zstd:level=3").spec == "msgpack+zstd:level=3"


@pytest.mark.parametrize("spec", CODECS)
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda codec: pickle.loads(pickle.dumps(codec))], ids=["copy", "pickle"]
)
def test_a_codec_can_be_copied_and_pickled(spec: str, clone: Any) -> None:
    codec = get_codec(spec)
    round_trip(codec, [torch.zeros(5000)])
    cloned = clone(codec)
    assert type(cloned) is type(codec)
    assert cloned.fingerprint() == codec.fingerprint()
    assert same(round_trip(cloned, [1, torch.ones(5000)]), [1, torch.ones(5000)])


@pytest.mark.parametrize("spec", ["pickle", "msgpack"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2,), (50, 50)], ids=str)
def test_tensors_land_on_the_cpu_whatever_the_default_device_is(spec: str, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape)
    with torch.device("meta"):
        result: Any = round_trip(get_codec(spec), tensor)
    assert same(result, tensor)
    assert result.device.type == "cpu"


@pytest.mark.parametrize("spec", CODECS)
def test_a_tensor_device_that_fails_is_told_as_such(spec: str) -> None:
    def out_of_memory(tensor: object) -> object:
        raise RuntimeError("out of memory")

    codec = get_codec(spec)
    frames = Landed(as_views(codec.encode([torch.ones(5000)]))).views
    with pytest.raises(DecodeError, match=r"^tensor_device failed: RuntimeError: out of memory$") as caught:
        codec.decode(frames, DecodeOptions(tensor_device=out_of_memory))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert same(codec.decode(frames), [torch.ones(5000)])


@pytest.mark.parametrize("spec", ["pickle", "msgpack"])
def test_tensors_arrive_without_what_torch_save_drops(spec: str) -> None:
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    tensor.register_hook(lambda grad: grad * 2)  # type: ignore[no-untyped-call]
    result = round_trip(get_codec(spec), tensor)
    assert same(result, tensor)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (result.grad, result._backward_hooks) == (None, None)


@pytest.mark.parametrize("spec", ["pickle", "msgpack"])
@pytest.mark.parametrize("shape", [(0, 2**62, 1), (2**40, 0, 2**40), (1,) * 33 + (2,)], ids=str)
def test_tensors_of_shapes_that_numpy_lacks_come_back(spec: str, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.ones(shape, dtype=dtype, requires_grad=True)
        assert same(round_trip(get_codec(spec), tensor), tensor)


def test_what_encodes_decodes_also_with_more_dimensions_than_numpy_has() -> None:
    tensor = torch.zeros([1] * 65)
    assert round_trip(get_codec("pickle"), tensor).shape == tensor.shape
    with pytest.raises(EncodeError, match=r"\$\[0\]: "):
        get_codec("msgpack").encode([tensor])
    for spec in ("pickle", "msgpack"):
        assert round_trip(get_codec(spec), torch.zeros([1] * 64)).dim() == 64
