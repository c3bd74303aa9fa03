"""What all codec tests share: frames as a Gatherer hands them over, and exact comparison."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gather_core.codec import Codec, DecodeOptions
from gather_core.exactness import difference
from gather_core.testing.codec_frames import Landed, as_views


def _land(frames: Sequence[Any]) -> list[memoryview]:
    return Landed([memoryview(frame).cast("B") for frame in frames]).views


def _roundtrip(codec: Codec, obj: Any, options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
    """Encodes and decodes; overwrites the memory of the frames before the result is looked at."""
    landed = Landed(as_views(codec.encode(obj)))
    decoded = codec.decode(landed.views, options)
    landed.overwrite()
    return decoded


def _assert_same(actual: Any, expected: Any) -> None:
    where = difference(actual, expected)
    assert where is None, where


@pytest.fixture
def land() -> Callable[[Sequence[Any]], list[memoryview]]:
    return _land


@pytest.fixture
def roundtrip() -> Callable[..., Any]:
    return _roundtrip


@pytest.fixture
def assert_same() -> Callable[[Any, Any], None]:
    return _assert_same
