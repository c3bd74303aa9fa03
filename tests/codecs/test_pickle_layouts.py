"""The pickle family: which layouts of tensors and arrays survive, and that nothing travels twice for them."""

from typing import Any

import numpy as np
import pytest
import torch

from gather_codecs.pickle5 import rebuild_tensor
from gather_core.codec import Codec, DecodeOptions
from gather_core.registry import get_codec

Array = np.ndarray[Any, Any]
_IMAGES = torch.arange(24.0).reshape(2, 3, 2, 2)
_COMPLEX = torch.complex(torch.arange(20.0), torch.ones(20)).reshape(4, 5)


@pytest.fixture(params=["pickle", "cloudpickle", "auto"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return get_codec(request.param)


def _nbytes(codec: Codec, obj: object) -> int:
    return sum(memoryview(frame).nbytes for frame in codec.encode(obj))


@pytest.mark.plan(15, 16)
@pytest.mark.parametrize(
    "tensor",
    [
        *(torch.arange(12.0).view(3, 4).t(), torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)),
        *(_IMAGES.to(memory_format=torch.channels_last), _IMAGES.to(memory_format=torch.channels_last)[1:]),
        torch.ones(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
        # Row-major too, but operators see channels_last.
        *(_IMAGES[:, :1].to(memory_format=torch.channels_last), torch.ones(8, 6, 1, 1, dtype=torch.bfloat16).mT),
        torch.ones(8, 6, 1, 1).to(memory_format=torch.channels_last),
        *(_COMPLEX.t().conj(), _COMPLEX.mH, torch._neg_view(_COMPLEX.real.contiguous().t())),
        *(_IMAGES[0, 0].t().bfloat16(), torch.ones(4, 5).to(torch.float8_e4m3fn).t(), torch.ones([1] * 33 + [2, 3]).mT),
        torch.ones(2, 3).t().requires_grad_(),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)[-5:]}",
)
def test_a_layout_without_gaps_survives(codec: Codec, roundtrip: Any, assert_same: Any, tensor: torch.Tensor) -> None:
    back = roundtrip(codec, tensor)
    assert_same(back, tensor)
    assert back.stride() == tensor.stride()


def test_a_layout_without_gaps_is_not_copied_by_encode(codec: Codec) -> None:
    tensor = torch.zeros(100, 200).t()
    _head, frame = codec.encode(tensor)
    tensor[5, 7] = 1
    assert np.frombuffer(frame, np.float32)[7 * 200 + 5] == 1


@pytest.mark.plan(20)
@pytest.mark.parametrize(
    ("tensor", "num_elements"),
    [
        *((torch.tensor(3.0).expand(1000, 50), 1), (torch.arange(8.0).expand(1000, 8), 8)),
        *((torch.arange(12.0).view(4, 1, 3).expand(4, 900, 3), 12), (torch.ones(4, 1, 3).mT.expand(4, 3, 900), 12)),
        *((torch.arange(40.0)[::5].view(8, 1).expand(8, 900), 8), (_COMPLEX[0].conj().expand(900, 5), 10)),
        (torch.arange(3.0).expand(900, 3).requires_grad_(), 3),
    ],
)
def test_broadcast_dimensions_travel_once_and_arrive_broadcast(
    codec: Codec, roundtrip: Any, assert_same: Any, tensor: torch.Tensor, num_elements: int
) -> None:
    assert _nbytes(codec, tensor) < 4 * num_elements + 200
    back = roundtrip(codec, tensor)
    assert_same(back, tensor)
    assert [stride == 0 for stride in back.stride()] == [stride == 0 for stride in tensor.stride()]


@pytest.mark.parametrize(
    "tensor",
    [
        *(torch.arange(20.0)[::2], torch.arange(10.0)[::2][:1], torch.arange(10.0).unfold(0, 3, 1)),
        *(torch.arange(24.0).view(4, 6).t()[::2], _COMPLEX.conj().imag, torch.zeros(0, 1).expand(0, 5)),
        *(torch.zeros(3, 1).expand(3, 0), torch.zeros(0, 2**40).t(), torch.zeros(5, 1, 3)[:, :, 1:2]),
    ],
)
def test_elements_that_lie_scattered_or_overlap_arrive_row_major(
    codec: Codec, roundtrip: Any, assert_same: Any, tensor: torch.Tensor
) -> None:
    back = roundtrip(codec, tensor)
    assert_same(back, tensor)
    assert back.is_contiguous()
    assert back.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize


@pytest.mark.plan(22)
def test_a_parameter_keeps_its_layout_and_has_no_gradient(codec: Codec, roundtrip: Any, assert_same: Any) -> None:
    parameter = torch.nn.Parameter(_IMAGES.to(memory_format=torch.channels_last))
    parameter.sum().backward()  # type: ignore[no-untyped-call]
    back = roundtrip(codec, parameter)
    assert_same(back, parameter)
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert back.grad is None


@pytest.mark.plan(22)
def test_what_was_computed_arrives_detached(codec: Codec, roundtrip: Any) -> None:
    back = roundtrip(codec, (torch.ones(2, 3, requires_grad=True) * 2).t())
    assert (back.requires_grad, back.grad_fn, back.stride()) == (False, None, (1, 3))


def test_a_tensor_device_is_given_the_layout(codec: Codec, roundtrip: Any) -> None:
    seen: list[Any] = []

    def keep(tensor: Any) -> Any:
        seen.append(tensor)
        return tensor

    options = DecodeOptions(tensor_device=keep)
    roundtrip(codec, [torch.ones(2, 3).t(), torch.ones(3).expand(4, 3)], options)
    assert [tensor.stride() for tensor in seen] == [(1, 3), (0, 1)]


@pytest.mark.plan(19)
def test_overlapping_views_arrive_right_and_as_copies(codec: Codec, roundtrip: Any) -> None:
    base = torch.arange(5000.0)
    first, second = roundtrip(codec, [base[:4000], base[1000:]])
    assert (first[1000], second[0]) == (1000, 1000)
    first += 1
    assert second[0] == 1000


@pytest.mark.parametrize("strides", [(1, 4000), (4000, 4000), (-1, 1)], ids=str)
def test_strides_that_do_not_fit_the_memory_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError):
        rebuild_tensor(bytearray(80_000), torch.float32, (200, 100), False, strides)


@pytest.mark.plan(24)
@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:TypedStorage", "ignore:Sparse", "ignore:The PyTorch API")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nn.UninitializedParameter(),
        lambda: torch.ones(2, 3).t().as_subclass(_Subclass),
    ],
    ids=["csr", "nested", "uninitialized", "subclass"],
)
def test_what_is_no_plain_tensor_is_left_to_torch(codec: Codec, roundtrip: Any, make: Any) -> None:
    tensor = make()
    back = roundtrip(codec, tensor)
    assert (type(back), back.layout, back.is_nested) == (type(tensor), tensor.layout, tensor.is_nested)


class _Subclass(torch.Tensor):
    pass


@pytest.mark.plan(24)
def test_what_torch_cannot_reduce_is_refused(codec: Codec) -> None:
    with pytest.raises(NotImplementedError):
        codec.encode([torch.ones(3, 3).to_mkldnn()])


@pytest.mark.plan(29, 45)
@pytest.mark.parametrize("is_writable", [True, False])
@pytest.mark.parametrize(
    "array",
    [
        *(np.arange(20000)[::2], np.arange(20000)[::-1], np.arange(20000).astype("m8[ns]")[::2]),
        *(
            np.zeros((20, 30, 40)).transpose(2, 0, 1),
            np.arange(24000).astype("M8[s]").reshape(20, 30, 40).swapaxes(1, 2),
        ),
        *(
            np.zeros((99, 90), [("a", "i4"), ("b", "f8")])[::2]["b"],
            np.zeros((99, 90), [("a", "i4"), ("b", "f8")])[::2],
        ),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_scattered_arrays_travel_out_of_band_and_stay_as_writable_as_they_were(
    codec: Codec, roundtrip: Any, assert_same: Any, array: Array, is_writable: bool
) -> None:
    array = array.view()
    array.flags.writeable = is_writable
    head, frame = codec.encode(array)
    assert (len(head) < 400, memoryview(frame).nbytes) == (True, array.nbytes)
    back = roundtrip(codec, array)
    assert_same(back, array)
    assert back.flags.writeable == is_writable


def test_a_transposed_array_is_not_copied_and_keeps_its_strides(codec: Codec, roundtrip: Any) -> None:
    array = np.zeros((20, 30, 40)).transpose(2, 0, 1)
    assert np.shares_memory(np.frombuffer(codec.encode(array)[1]), array)
    assert roundtrip(codec, array).strides == array.strides


@pytest.mark.parametrize(
    "array", [np.broadcast_to(np.arange(8).astype("M8[s]"), (9000, 8)), np.broadcast_to(np.zeros((1, 3)), (0, 3))]
)
@pytest.mark.plan(20, 45)
def test_a_broadcast_array_stays_broadcast_and_read_only(
    codec: Codec, roundtrip: Any, assert_same: Any, array: Array
) -> None:
    assert _nbytes(codec, array) < 500
    back = roundtrip(codec, array)
    assert_same(back, array)
    assert not back.flags.writeable
    assert back.strides[0] == 0 or not array.size
