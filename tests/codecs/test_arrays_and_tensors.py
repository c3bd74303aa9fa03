"""Arrays and tensors: what of dtype, shape, layout, memory and device every codec keeps."""

import math
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from every_codec import EVERY, MSGPACK, PICKLES, RAW, STRUCTURED
from fresh_python import run_python
from gather_core.codec import Codec
from gather_core.errors import EncodeError
from gather_core.registry import get_codec

Array = np.ndarray[Any, Any]
_NAMES = (
    *(
        "bool",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
        "float16",
        "float32",
        "float64",
    ),
    *("complex64", "complex128", "bfloat16", "complex32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)
TORCH_DTYPES = [getattr(torch, name) for name in _NAMES if hasattr(torch, name)]
NUMPY_DTYPES = [
    *(f"{order}{code}" for code in ("i2", "u4", "i8", "f2", "f4", "f8", "c8", "c16") for order in "<>"),
    *("?", "i1", "u1", "M8[ns]", ">M8[s]", "M8[25us]", "m8[D]", "m8"),
]


@pytest.fixture(params=EVERY)
def codec(request: pytest.FixtureRequest) -> Codec:
    return get_codec(request.param)


def _random_bytes(nbytes: int) -> bytes:
    return np.random.default_rng(nbytes).bytes(nbytes)


def _random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    raw = torch.frombuffer(bytearray(_random_bytes(dtype.itemsize * math.prod(shape)) or b"0"), dtype=torch.uint8)
    raw = raw % 2 if dtype is torch.bool else raw
    return raw[: dtype.itemsize * math.prod(shape)].view(dtype).view(shape)


def _random_array(code: str, shape: tuple[int, ...]) -> Array:
    raw = np.frombuffer(_random_bytes(np.dtype(code).itemsize * math.prod(shape)), np.uint8)
    return (raw % 2 if code == "?" else raw.copy()).view(code).reshape(shape)


@pytest.mark.plan(14)
@pytest.mark.parametrize("shape", [(37, 3), (2, 5000)], ids=str)
def test_every_dtype_comes_back_bit_for_bit(
    codec: Codec, roundtrip: Any, assert_same: Any, shape: tuple[int, ...]
) -> None:
    arrays = [_random_array(code, shape) for code in NUMPY_DTYPES]
    tensors = [_random_tensor(dtype, shape) for dtype in TORCH_DTYPES]
    assert any(tensor.isnan().any() for tensor in tensors if tensor.dtype in (torch.bfloat16, torch.float8_e5m2))
    for original in (*arrays, *tensors):
        assert_same(roundtrip(codec, original), original)


NO_ELEMENTS = [(0,), (0, 3), (0, 2**40), (2, 0, 3)]


@pytest.mark.plan(15)
def test_odd_shapes_come_back(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    arrays = [np.array(2.5), *(np.zeros(shape, "i1") for shape in NO_ELEMENTS), np.arange(10)[::2][:1]]
    arrays += [np.arange(6).reshape(1, 6, 1).T, np.arange(6).reshape(6, 1).T, np.ones((3, 1, 2)).transpose(1, 0, 2)]
    tensors = [torch.tensor(2.5), *map(torch.zeros, NO_ELEMENTS), torch.arange(10.0)[::2][:1]]
    tensors += [torch.arange(6).view(1, 6, 1).permute(2, 1, 0), torch.arange(6).view(6, 1).t(), torch.ones(5, 1, 1).mT]
    for original in (*arrays, *tensors):
        assert_same(roundtrip(codec, original), original)


COMPLEX = torch.complex(torch.arange(2000.0), torch.ones(2000)).view(40, 50)


@pytest.mark.plan(16)
@pytest.mark.filterwarnings("ignore:ComplexHalf")  # torch's, for conjugating one
def test_layouts_come_back(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    matrix, images = torch.arange(2000.0).view(40, 50), torch.arange(2400).view(2, 3, 20, 20)
    tensors = [
        matrix.t(),
        matrix[::2, 1::3],
        matrix[5:6].expand(30, 50),
        COMPLEX.conj(),
        COMPLEX.mH,
        matrix.unfold(0, 3, 1),
    ]
    tensors += [COMPLEX.conj().imag, torch._neg_view(matrix.t()), images.contiguous(memory_format=torch.channels_last)]
    tensors += [torch._neg_view(matrix.bfloat16()), _random_tensor(torch.complex32, (40, 50)).conj()]
    assert tensors[3].is_conj()
    assert tensors[6].is_neg()
    array = np.arange(2000).reshape(40, 50)
    arrays = [
        array[::-1],
        array[:, ::-2],
        array[::2],
        np.asfortranarray(array),
        array.T,
        array.reshape(4, 10, 50)[:, ::3],
    ]
    for original in (*tensors, *arrays):
        assert_same(roundtrip(codec, original), original)


RECORDS = np.zeros(300, [("a", ">i4"), ("b", "M8[ns]")])
TEXT, OBJECTS = np.array(["é", "abc"] * 300), np.array([None, "x", [1]], object)


@pytest.mark.plan(17)
@pytest.mark.parametrize("spec", EVERY)
def test_odd_dtypes_come_back_or_are_refused(spec: str, roundtrip: Any, assert_same: Any) -> None:
    codec = get_codec(spec)
    times = np.array(["2020-01-01", "NaT"] * 400, "M8[ns]")
    for array in (np.arange(900, dtype=">i4"), np.arange(9, dtype=">f8"), times, times.view("m8[ns]"), times[:1]):
        assert_same(roundtrip(codec, array), array)
    takes = {"pickle": (RECORDS, TEXT, OBJECTS), "raw": (RECORDS, TEXT), "msgpack": (RECORDS, TEXT)}
    taken: Any = takes["pickle" if spec in PICKLES else spec.partition("+")[0]]
    for array in (RECORDS, TEXT, OBJECTS):
        if any(array is other for other in taken):
            assert_same(roundtrip(codec, array), array)
        else:
            with pytest.raises(EncodeError, match="dtype"):
                codec.encode(array)


@pytest.mark.plan(18)
@pytest.mark.parametrize("num_elements", [1, 1000])
def test_a_view_takes_little_more_than_its_elements(codec: Codec, num_elements: int) -> None:
    large = np.random.default_rng(0).random(1_000_000)
    for view in (large[:num_elements], torch.from_numpy(large)[:num_elements], large[-num_elements:]):
        nbytes = sum(memoryview(frame).nbytes for frame in codec.encode(view))
        assert 8 * num_elements <= nbytes < 8 * num_elements + 1024


@pytest.mark.plan(19)
@pytest.mark.parametrize("spec", STRUCTURED)
def test_a_tensor_in_two_places_is_right_and_with_pickle_sent_once(spec: str, roundtrip: Any, assert_same: Any) -> None:
    codec = get_codec(spec)
    tensor = torch.frombuffer(bytearray(_random_bytes(40_000)), dtype=torch.int32)
    obj = {"a": tensor, "b": [tensor, tensor[:9000]], "c": tensor[1000:]}
    nbytes = sum(memoryview(frame).nbytes for frame in codec.encode({"a": tensor, "b": tensor}))
    assert (nbytes < 41_000) == (spec in PICKLES)
    back = roundtrip(codec, obj)
    assert_same(back, obj)
    assert (back["a"] is back["b"][0]) == (spec in PICKLES)
    back["b"][1].zero_()
    assert_same([back["a"], back["c"]], [tensor, tensor[1000:]])


@pytest.mark.plan(20)
def test_what_is_broadcast_is_right_and_does_not_grow_where_strides_are_kept(
    codec: Codec, roundtrip: Any, assert_same: Any
) -> None:
    array = np.broadcast_to(np.arange(8.0), (10_000, 8))
    assert_same(roundtrip(codec, array), array)
    if codec.spec in PICKLES:
        assert sum(memoryview(frame).nbytes for frame in codec.encode(array)) < 500


@pytest.mark.plan(21)
@pytest.mark.parametrize("spec", STRUCTURED)
def test_numpy_scalars_stay_numpy_scalars(spec: str, roundtrip: Any, assert_same: Any) -> None:
    scalars = [_random_array(code, (1,))[0] for code in NUMPY_DTYPES if code[0] != ">"]
    obj = [scalars, np.bool_(False), np.float64(-0.0), {np.int64(3): np.float32("nan")}, (np.datetime64("NaT", "s"),)]
    assert_same(roundtrip(get_codec(spec), obj), obj)


@pytest.mark.plan(22)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_parameters_stay_parameters_or_are_refused(
    codec: Codec, roundtrip: Any, assert_same: Any, requires_grad: bool
) -> None:
    parameter = torch.nn.Parameter(torch.arange(2000.0), requires_grad)
    parameter.grad = torch.ones(2000)
    if codec.spec in PICKLES:
        back = roundtrip(codec, parameter)
        assert_same(back, parameter)
        assert back.grad is None
    else:
        with pytest.raises(EncodeError, match="Parameter"):
            codec.encode(parameter)


@pytest.mark.plan(22)
def test_leaves_keep_requires_grad_and_what_was_computed_is_detached(codec: Codec, roundtrip: Any) -> None:
    leaf = torch.ones(2000, requires_grad=True)
    back, computed = roundtrip(codec, leaf), roundtrip(codec, leaf * 2)
    assert (back.requires_grad, back.is_leaf, back.grad) == (True, True, None)
    assert (computed.requires_grad, computed.grad_fn, float(computed[0])) == (False, None, 2)


class Mine(torch.Tensor):
    pass


def _odd_tensors() -> dict[str, torch.Tensor]:
    return {
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "meta": torch.empty(2, 3, device="meta"),
        "subclass": torch.ones(2, 3).as_subclass(Mine),
    }


@pytest.mark.plan(24)
@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:.*quantized", "ignore:Typed", "ignore:Sparse")
@pytest.mark.filterwarnings("ignore:The PyTorch API")
@pytest.mark.parametrize("kind", ["sparse", "csr", "quantized", "nested", "jagged", "meta", "subclass"])
def test_odd_tensors_are_refused_with_their_path_or_left_to_torch(codec: Codec, roundtrip: Any, kind: str) -> None:
    tensor = _odd_tensors()[kind]
    if codec.spec in MSGPACK:
        with pytest.raises(EncodeError, match=r"\$\.x\[1\]: it keeps no .*Tensor|\$\.x\[1\]: it keeps no .*Mine"):
            codec.encode({"x": [0, tensor]})
    elif codec.spec in RAW:
        with pytest.raises(EncodeError, match="raw takes exactly one"):
            codec.encode(tensor)
    elif kind != "jagged":  # which torch itself sends with a warning only
        back = roundtrip(codec, [tensor])[0]
        assert (type(back), back.layout, back.device) == (type(tensor), tensor.layout, tensor.device)
        assert (back.is_nested, back.is_quantized, back.dtype) == (tensor.is_nested, tensor.is_quantized, tensor.dtype)


_DISTRIBUTED = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import torch.distributed as dist
from gather_core import EncodeError
from gather_core.registry import get_codec
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
tensor = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (1,)))
for spec, obj in (("msgpack", {"x": [tensor]}), ("raw", tensor)):
    try:
        get_codec(spec).encode(obj)
    except EncodeError as exc:
        print(exc)
dist.destroy_process_group()
"""


@pytest.mark.plan(24)
def test_distributed_tensors_are_refused_with_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    msgpack_says, raw_says = run_python(_DISTRIBUTED).splitlines()
    assert re.search(r"cannot encode \$\.x\[0\]: it keeps no .*DTensor", msgpack_says)
    assert re.search(r"raw takes exactly one .*DTensor", raw_says)


@pytest.mark.plan(25)
@pytest.mark.parametrize("spec", STRUCTURED)
@pytest.mark.parametrize("num_elements", [3, 2501])
def test_elements_are_aligned_whatever_comes_before_them(
    spec: str, roundtrip: Any, assert_same: Any, num_elements: int
) -> None:
    odd = [b"odd" * 3, torch.ones(5001, dtype=torch.uint8), np.ones(4097, "u1"), bytes(300_001)]
    for dtype in TORCH_DTYPES:
        tensor = _random_tensor(dtype, (num_elements,))
        back = roundtrip(get_codec(spec), [*odd, tensor])[-1]
        assert_same(back, tensor)
        assert back.data_ptr() % dtype.itemsize == 0
    for code in NUMPY_DTYPES:
        array = _random_array(code, (num_elements,))
        back = roundtrip(get_codec(spec), [*odd, array])[-1]
        assert_same(back, array)
        assert back.flags.aligned


SCATTERED: dict[str, Any] = {
    "strided": np.arange(20_000)[::2],
    "reversed": np.arange(5000)[::-1],
    "broadcast": np.broadcast_to(np.arange(5000.0), (3, 5000)),
    "times": np.arange(5000).astype("M8[ns]"),
    "strided times": np.arange(9000).astype("m8[s]")[::2],
    "strided tensor": torch.arange(20_000)[::2],
    "expanded tensor": torch.arange(5000).expand(3, 5000),
    "transposed tensor": torch.ones(50, 90).t(),
}


@pytest.mark.plan(29)
@pytest.mark.parametrize("spec", ["pickle", "cloudpickle", "auto"])
@pytest.mark.parametrize("kind", SCATTERED)
def test_scattered_elements_travel_out_of_band_in_pickles(
    spec: str, kind: str, roundtrip: Any, assert_same: Any
) -> None:
    codec, obj = get_codec(spec), {"x": [SCATTERED[kind]]}
    head, elements = codec.encode(obj)
    assert len(head) < 400
    assert memoryview(elements).nbytes >= 50 * 90 * 4
    assert_same(roundtrip(codec, obj), obj)


@pytest.mark.parametrize("spec", ["pickle", "cloudpickle", "auto", "msgpack", "raw"])
@pytest.mark.parametrize("nbytes", [0, 1199, 1200])
@pytest.mark.parametrize("look", [lambda whole: whole, lambda whole: whole.view(10, 30).t(), lambda whole: whole[200:]])
def test_tensors_whose_memory_was_freed_or_shrunk_are_refused(spec: str, nbytes: int, look: Any) -> None:
    whole = torch.zeros(300)
    tensor = look(whole)
    codec = get_codec(spec)
    whole.untyped_storage().resize_(nbytes)
    if nbytes == 1200:
        codec.encode(tensor)
        return
    with pytest.raises(EncodeError):
        codec.encode(tensor)
    whole.untyped_storage().resize_(1200)


@pytest.mark.parametrize("spec", ["pickle", "msgpack", "raw"])
@pytest.mark.parametrize("nbytes", [0, 800])
@pytest.mark.parametrize("look", [torch.Tensor.conj, lambda whole: whole.conj().imag, lambda whole: whole[::2].conj()])
def test_conjugates_whose_memory_was_freed_or_shrunk_are_refused(spec: str, nbytes: int, look: Any) -> None:
    whole = torch.zeros(300, dtype=torch.complex64)
    tensor = look(whole)
    whole.untyped_storage().resize_(nbytes)
    with pytest.raises(EncodeError):
        get_codec(spec).encode(tensor)


@pytest.mark.parametrize("spec", ["pickle", "cloudpickle", "auto", "msgpack", "raw"])
@pytest.mark.parametrize("look", [lambda whole: whole, lambda whole: whole.view(10, 30).t(), lambda whole: whole[::2]])
def test_what_was_sent_can_be_resized_as_before(spec: str, look: Any) -> None:
    whole = torch.zeros(300)
    get_codec(spec).encode(look(whole))
    whole.untyped_storage().resize_(0)


@pytest.mark.parametrize("spec", ["pickle", "msgpack", "raw"])
def test_frames_keep_the_memory_of_a_tensor_alive(spec: str) -> None:
    tensor = torch.arange(5000.0)
    expected = tensor.numpy().tobytes()
    frames = get_codec(spec).encode(tensor)
    memory = weakref.ref(tensor)
    del tensor
    assert memory() is not None
    assert expected in b"".join(bytes(frame) for frame in frames)
    del frames
    assert memory() is None


def test_broadcast_conjugates_arrive_broadcast() -> None:
    tensor = torch.arange(9).to(torch.complex64)[1:2].expand(500).conj()
    codec = get_codec("pickle")
    arrived: Any = codec.decode([memoryview(bytes(frame)) for frame in codec.encode(tensor)])
    assert arrived.stride() == (0,)
    assert torch.equal(arrived, tensor)


@pytest.mark.parametrize("spec", ["pickle", "msgpack", "raw"])
def test_tensors_that_stand_for_others_are_refused(spec: str) -> None:
    def encode(tensor: torch.Tensor) -> torch.Tensor:
        with pytest.raises(EncodeError, match="no memory"):
            get_codec(spec).encode(tensor + 1)
        return tensor

    torch.func.functionalize(encode)(torch.ones(3))


@pytest.mark.parametrize("spec", ["pickle", "msgpack", "raw"])
def test_what_arrives_has_elements_whatever_mode_torch_is_in(spec: str) -> None:
    codec, tensor = get_codec(spec), torch.arange(5.0)
    frames = [memoryview(bytes(frame)) for frame in codec.encode(tensor)]
    with FakeTensorMode():
        arrived = codec.decode(frames)
    assert type(arrived) is torch.Tensor
    assert torch.equal(arrived, tensor)
