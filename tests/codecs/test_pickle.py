"""PickleCodec: out-of-band buffers, tensors as their elements, and memory of their own for what is decoded."""

import copyreg
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fresh_python import run_python
from gather_codecs.pickle5 import OUT_OF_BAND_FROM_NBYTES, PickleCodec
from gather_core.codec import DecodeOptions
from gather_core.errors import DecodeError, EncodeError
from gather_core.registry import get_codec

Land = Callable[[Sequence[Any]], list[memoryview]]
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e4m3fnuz),
    *(torch.float8_e5m2, torch.float8_e5m2fnuz),
]


@pytest.fixture
def codec() -> PickleCodec:
    return PickleCodec()


def _random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    nbytes = dtype.itemsize * int(np.prod(shape))
    high = 2 if dtype is torch.bool else 256
    return torch.randint(0, high, (nbytes,), dtype=torch.uint8).view(dtype).view(shape)


@pytest.mark.parametrize(
    "obj", [None, 1, "x", {"a": [1, (2, {3})]}, OrderedDict(a=1), b"x" * 100_000, bytearray(70_000)]
)
def test_plain_objects_come_back(codec: PickleCodec, roundtrip: Any, assert_same: Any, obj: object) -> None:
    assert_same(roundtrip(codec, obj), obj)


@pytest.mark.plan(14, 15)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 5), (70, 70)], ids=str)
def test_tensors_of_every_dtype_come_back_bit_for_bit(
    codec: PickleCodec, roundtrip: Any, assert_same: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = _random_tensor(dtype, shape)
    assert_same(roundtrip(codec, tensor), tensor)


@pytest.mark.plan(16, 22)
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(20000.0)[::2],
        torch.arange(10.0)[::2][:1],
        torch.arange(3.0).expand(2000, 3),
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        torch.ones(3, requires_grad=True),
        torch.ones(3, requires_grad=True) * 2,
    ],
)
def test_views_conjugates_and_gradients_come_back(
    codec: PickleCodec, roundtrip: Any, assert_same: Any, tensor: torch.Tensor
) -> None:
    assert_same(roundtrip(codec, tensor), tensor)


@pytest.mark.plan(18)
def test_a_view_ships_its_elements_and_not_its_storage(codec: PickleCodec) -> None:
    assert sum(len(frame) for frame in codec.encode(torch.zeros(1_000_000)[:1])) < 300


def test_a_large_buffer_is_a_frame_of_its_own_that_is_not_copied(codec: PickleCodec) -> None:
    array = np.zeros(OUT_OF_BAND_FROM_NBYTES, np.uint8)
    head, frame = codec.encode({"array": array})
    assert len(head) < 300
    array[0] = 7
    assert frame[0] == 7


def test_a_small_buffer_stays_in_the_head(codec: PickleCodec) -> None:
    assert len(codec.encode(np.zeros(OUT_OF_BAND_FROM_NBYTES - 1, np.uint8))) == 1


@pytest.mark.plan(29)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(20000)[::2],
        np.arange(20000)[::-1],
        np.asfortranarray(np.arange(20000).reshape(100, 200)),
        np.arange(20000).astype("datetime64[s]"),
        np.arange(20000).astype(">i4"),
        np.zeros(5000, [("a", "i4"), ("b", "f8")]),
    ],
)
def test_large_arrays_of_every_layout_travel_out_of_band(
    codec: PickleCodec, roundtrip: Any, assert_same: Any, array: np.ndarray[Any, Any]
) -> None:
    assert len(codec.encode(array)) == 2
    back = roundtrip(codec, array)
    assert_same(back, array)
    assert back.flags.writeable


@pytest.mark.parametrize("array", [np.array([None, "x"], object), np.array("2020-01-01", "M8[D]"), np.zeros((0, 2))])
def test_object_scalar_and_empty_arrays_come_back(
    codec: PickleCodec, roundtrip: Any, array: np.ndarray[Any, Any]
) -> None:
    back = roundtrip(codec, array)
    assert (back.dtype, back.shape, back.tolist()) == (array.dtype, array.shape, array.tolist())


@pytest.mark.plan(20)
def test_a_broadcast_array_ships_its_elements_once(codec: PickleCodec, roundtrip: Any, assert_same: Any) -> None:
    array = np.broadcast_to(np.arange(8.0), (100_000, 8))
    assert sum(len(frame) for frame in codec.encode(array)) < 500
    assert_same(roundtrip(codec, array), array)


@pytest.mark.plan(45)
def test_arrays_keep_whether_they_can_be_written(codec: PickleCodec, roundtrip: Any) -> None:
    array = np.arange(5000)
    assert roundtrip(codec, array).flags.writeable
    array.flags.writeable = False
    assert not roundtrip(codec, array).flags.writeable


@pytest.mark.plan(40)
@pytest.mark.parametrize("num_elements", [3, 5000])
def test_a_decoded_tensor_is_writable_and_not_the_original(
    codec: PickleCodec, roundtrip: Any, num_elements: int
) -> None:
    tensor = torch.zeros(num_elements)
    back = roundtrip(codec, tensor)
    back += 1
    assert tensor.sum() == 0
    assert back.sum() == num_elements


@pytest.mark.plan(19)
def test_a_tensor_in_two_places_is_sent_once_and_stays_shared(codec: PickleCodec, roundtrip: Any) -> None:
    tensor, array = torch.zeros(5000), np.zeros(5000)
    obj = {"a": tensor, "b": [tensor, array], "c": array}
    assert len(codec.encode(obj)) == 3
    back = roundtrip(codec, obj)
    assert back["a"] is back["b"][0]
    assert back["c"] is back["b"][1]


@pytest.mark.plan(22)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_parameter_stays_a_parameter(
    codec: PickleCodec, roundtrip: Any, assert_same: Any, requires_grad: bool
) -> None:
    parameter = torch.nn.Parameter(torch.arange(5000.0), requires_grad)
    assert_same(roundtrip(codec, parameter), parameter)


def test_a_tied_parameter_stays_tied(codec: PickleCodec, roundtrip: Any) -> None:
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    second.weight = first.weight
    back = roundtrip(codec, torch.nn.Sequential(first, second))
    assert back[0].weight is back[1].weight


def test_attributes_of_tensors_come_back_and_may_refer_to_the_tensor(codec: PickleCodec, roundtrip: Any) -> None:
    tensor: Any
    for tensor in (torch.zeros(3), torch.nn.Parameter(torch.zeros(3))):
        tensor.__dict__.update(tag="x", me=tensor)
        back = roundtrip(codec, tensor)
        assert type(back) is type(tensor)
        assert back.tag == "x"
        assert back.me is back


@pytest.mark.plan(24)
@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:TypedStorage", "ignore:Sparse")
def test_what_is_more_than_its_elements_is_left_to_torch(codec: PickleCodec, roundtrip: Any) -> None:
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(roundtrip(codec, sparse).to_dense(), torch.eye(3))
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.qint8)
    assert torch.equal(roundtrip(codec, quantized).dequantize(), torch.ones(3))
    meta = roundtrip(codec, torch.empty(2, 3, device="meta"))
    assert (meta.device.type, meta.shape) == ("meta", (2, 3))


def test_the_current_device_is_the_cpu_where_there_is_no_other(
    codec: PickleCodec, roundtrip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert roundtrip(codec, torch.zeros(3), DecodeOptions(tensor_device="current")).device.type == "cpu"


def test_the_current_device_is_asked_of_this_rank(
    codec: PickleCodec, roundtrip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    back = roundtrip(codec, torch.ones(3, requires_grad=True), DecodeOptions(tensor_device="current"))
    assert back.device.type == "meta"
    assert back.requires_grad


@pytest.mark.plan(31)
@pytest.mark.parametrize("nbytes", [100, 10_000])
def test_a_users_pickle_buffer_owns_its_memory_after_decoding(codec: PickleCodec, roundtrip: Any, nbytes: int) -> None:
    back = roundtrip(codec, [pickle.PickleBuffer(bytearray(b"u" * nbytes))])
    assert bytes(back[0]) == b"u" * nbytes


@pytest.mark.parametrize("obj", [None, {"a": 1}, b"x" * 100_000], ids=["None", "dict", "large"])
def test_bytes_behind_the_pickle_are_refused(codec: PickleCodec, land: Land, obj: object) -> None:
    with pytest.raises(DecodeError, match=r"1 bytes behind|cannot unpickle"):
        codec.decode(land([bytes(codec.encode(obj)[0]) + b"."]))


def test_a_truncated_head_is_refused(codec: PickleCodec, land: Land) -> None:
    head = bytes(codec.encode({"a": 1})[0])
    for length in range(len(head)):
        with pytest.raises(DecodeError):
            codec.decode(land([head[:length]]))


@pytest.mark.parametrize(
    "head", [b"", b"garbage", b"cos\nno_such_name\n.", b"\x80\x05K\x05a.", b"cno_such_module\nx\n."]
)
def test_whatever_unpickling_raises_is_a_decode_error_that_keeps_the_cause(
    codec: PickleCodec, land: Land, head: bytes
) -> None:
    with pytest.raises(DecodeError, match="cannot unpickle") as caught:
        codec.decode(land([head]))
    assert caught.value.__cause__ is not None
    assert type(caught.value.__cause__).__name__ in str(caught.value)


@pytest.mark.plan(33)
def test_a_failed_encode_leaves_nothing_behind(codec: PickleCodec, roundtrip: Any) -> None:
    assert roundtrip(codec, {"a": 1}) == {"a": 1}
    with pytest.raises((TypeError, pickle.PicklingError)):
        codec.encode([np.zeros(5000), threading.Lock()])
    assert len(codec.encode({"a": 1})) == 1
    assert roundtrip(codec, {"a": 1}) == {"a": 1}


class _Node:
    pass


class _Nested:
    """Encodes something else while it is being encoded."""

    def __init__(self, codec: PickleCodec) -> None:
        self.codec = codec

    def __reduce__(self) -> Any:
        return bytes, (bytes(self.codec.encode([1, 2, 3])[0]),)


def test_an_encode_inside_an_encode_does_not_disturb_it(codec: PickleCodec, roundtrip: Any) -> None:
    codec.encode("warm")
    first, inner, last = roundtrip(codec, ["first", _Nested(codec), "last"])
    assert (first, last) == ("first", "last")
    assert pickle.loads(inner) == [1, 2, 3]


class _Late:
    pass


def test_reducers_that_copyreg_learns_later_are_used(
    codec: PickleCodec, roundtrip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec.encode(_Late())
    monkeypatch.setitem(copyreg.dispatch_table, _Late, lambda obj: "None")
    monkeypatch.setitem(copyreg.dispatch_table, _Late, lambda obj: (str, ("late",)))
    assert roundtrip(codec, _Late()) == "late"


def test_encoding_does_not_import_torch_and_learns_of_it_once_it_is_there() -> None:
    script = (
        "import sys; from gather_codecs.pickle5 import PickleCodec; c = PickleCodec(); c.encode(1);"
        "assert 'torch' not in sys.modules; import torch; print(sum(map(len, c.encode(torch.zeros(100000)[:1]))))"
    )
    assert re.fullmatch(r"\d{1,3}", run_python(script))


@pytest.mark.parametrize("spec", ["pickle", "cloudpickle", "auto"])
def test_text_of_numpy_keeps_the_zeros_at_its_end(spec: str, roundtrip: Any) -> None:
    texts = [np.str_("a\0"), np.bytes_(b"a\0\0"), np.str_(""), np.str_("plain")]
    back = roundtrip(get_codec(spec), texts)
    assert [(type(text), repr(text)) for text in back] == [(type(text), repr(text)) for text in texts]


def test_what_has_no_name_is_refused_with_the_codec_that_takes_it() -> None:
    class Local:
        pass

    for nameless in (Local, Local(), [lambda: 1]):
        with pytest.raises(EncodeError, match=r"codec pickle cannot encode this .*; the codec 'auto' sends functions"):
            get_codec("pickle").encode(nameless)
        with pytest.raises(EncodeError, match="the codec 'auto'"):
            get_codec("pickle+zstd").encode(nameless)
        get_codec("auto").encode(nameless)
    with pytest.raises(TypeError) as other:
        get_codec("pickle").encode(memoryview(b""))
    assert "auto" not in str(other.value)
