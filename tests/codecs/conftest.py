"""What all codec tests share: frames as a Gatherer hands them over, and exact comparison."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from gather_core.codec import Codec, DecodeOptions
from gather_core.memory import align, aligned_buffer


def _land(frames: Sequence[Any]) -> tuple[memoryview, list[memoryview]]:
    """Copies frames into one aligned memory; returns that and the read-only views of the frames."""
    views = [memoryview(frame).cast("B") for frame in frames]
    memory = aligned_buffer(sum(align(view.nbytes) for view in views))
    landed, start = [], 0
    for view in views:
        memory[start : start + view.nbytes] = view
        landed.append(memory[start : start + view.nbytes].toreadonly())
        start += align(view.nbytes)
    return memory, landed


def _roundtrip(codec: Codec, obj: Any, options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
    """Encodes and decodes; overwrites the memory of the frames before the result is looked at."""
    memory, landed = _land(codec.encode(obj))
    decoded = codec.decode(landed, options)
    memory[:] = b"\xaa" * len(memory)
    return decoded


def _assert_same(actual: Any, expected: Any) -> None:
    """Same types all the way down, same bits in arrays, tensors and floats, same order in dicts."""
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.requires_grad == (expected.requires_grad and expected.is_leaf)
        assert _tensor_bits(actual) == _tensor_bits(expected)
    elif isinstance(expected, np.ndarray):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.tobytes() == expected.tobytes()
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for actual_item, expected_item in zip(actual, expected, strict=True):
            _assert_same(actual_item, expected_item)
    elif isinstance(expected, dict):
        _assert_same(list(actual.items()), list(expected.items()))
    elif isinstance(expected, float | complex | np.generic):
        assert np.asarray(actual).tobytes() == np.asarray(expected).tobytes()
    elif isinstance(expected, set | frozenset):
        assert {(type(item), item) for item in actual} == {(type(item), item) for item in expected}
    elif isinstance(expected, Decimal):
        assert repr(actual) == repr(expected)
    else:
        assert actual == expected
        assert repr(actual) == repr(expected)


def _tensor_bits(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return (
        b""
        if dense.numel() == 0
        else dense.as_strided((dense.numel(),), (1,), dense.storage_offset()).view(torch.uint8).numpy().tobytes()
    )


@pytest.fixture
def land() -> Callable[[Sequence[Any]], list[memoryview]]:
    return lambda frames: _land(frames)[1]


@pytest.fixture
def roundtrip() -> Callable[..., Any]:
    return _roundtrip


@pytest.fixture
def assert_same() -> Callable[[Any, Any], None]:
    return _assert_same
