"""Zstandard over the frames of another codec, frame by frame, where a sample says that it pays."""

import struct
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import zstandard

from gather_core.codec import Buffer, Codec, DecodeOptions, Frames, Limits
from gather_core.errors import DecodeError, LimitError
from gather_core.memory import aligned_buffer

DEFAULT_LEVEL = 1
DEFAULT_MIN_NBYTES = 10_000
_WORTH_IT = 0.7
_SAMPLE_NBYTES = 10_000
_NUM_SAMPLES = 5
_STORED = (1 << 64) - 1
"""In the table, in place of a decompressed size: this frame is not compressed."""
_DEFAULTS = Limits()
_MAX_RATIO = _DEFAULTS.expansion_ratio // 2
"""Frames of zeros shrink up to 32,768 times; padded to this they stay below the default limit."""
_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A50


class ZstdCodec(Codec):
    """Compresses what another codec writes; decodes what that codec decodes.

    The first frame is a table with one u64 per frame: its decompressed size in bytes, or all ones where it is stored.
    Objects that the default `Limits` would refuse after decompression are stored: the limits in force then count all
    of their bytes before they are sent.

    Args:
        inner: The codec whose frames are compressed.
        level: zstd's compression level, 1 to 22.
        min_nbytes: Smaller frames are stored.
    """

    name = "zstd"

    def __init__(self, inner: Codec, *, level: int = DEFAULT_LEVEL, min_nbytes: int = DEFAULT_MIN_NBYTES) -> None:
        if type(level) is not int or not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise ValueError(f"level must be an int from 1 to {zstandard.MAX_COMPRESSION_LEVEL}, not {level!r}")
        if type(min_nbytes) is not int or min_nbytes < 1:
            raise ValueError(f"min_nbytes must be an int of at least 1, not {min_nbytes!r}")
        self._inner = inner
        self._level = level
        self._min_nbytes = min_nbytes
        self._contexts = _Contexts(level)

    def __reduce__(self) -> Any:
        """Copies and pickles are built from the arguments: zstandard's contexts are neither."""
        return partial(type(self), level=self._level, min_nbytes=self._min_nbytes), (self._inner,)

    @property
    def trust(self) -> Any:  # type: ignore[override]
        """What decoding can do is up to the codec inside."""
        return self._inner.trust

    @property
    def spec(self) -> str:
        return f"{self._inner.spec}+{self._own_spec()}"

    def fingerprint(self) -> str:
        return f"{self._inner.fingerprint()}+{self._own_spec()}"

    def _own_spec(self) -> str:
        options = []
        if self._level != DEFAULT_LEVEL:
            options.append(f"level={self._level}")
        if self._min_nbytes != DEFAULT_MIN_NBYTES:
            options.append(f"min_nbytes={self._min_nbytes}")
        return f"{self.name}:{','.join(options)}" if options else self.name

    def encode(self, obj: object) -> Frames:
        sizes: list[int] = []
        stored: list[Buffer] = []
        views = [memoryview(frame).cast("B") for frame in self._inner.encode(obj)]
        may_compress = sum(view.nbytes for view in views) <= min(_DEFAULTS.payload_nbytes, _DEFAULTS.frame_nbytes)
        for view in views:
            packed = self._compress(view) if may_compress else None
            sizes.append(_STORED if packed is None else view.nbytes)
            stored.append(view if packed is None else packed)
        return [struct.pack(f"<{len(sizes)}Q", *sizes), *stored]

    def _compress(self, view: memoryview) -> bytes | None:
        """Returns the compressed frame, or None where it does not pay."""
        if view.nbytes < self._min_nbytes:
            return None
        compressor = self._contexts.compressor
        if view.nbytes > _NUM_SAMPLES * _SAMPLE_NBYTES:
            sample = _sample(view)
            if len(compressor.compress(sample)) > _WORTH_IT * len(sample):
                return None
        packed = compressor.compress(view)
        return _pad(packed, view.nbytes) if len(packed) <= _WORTH_IT * view.nbytes else None

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if not frames or len(frames[0]) != 8 * (len(frames) - 1):
            raise DecodeError("the table of decompressed sizes does not fit the frames")
        sizes = struct.unpack(f"<{len(frames) - 1}Q", frames[0])
        _check_sizes(sizes, frames[1:], options.limits)
        raw = [
            frame if size == _STORED else self._decompress(frame, size)
            for frame, size in zip(frames[1:], sizes, strict=True)
        ]
        return self._inner.decode(raw, options)

    def _decompress(self, packed: memoryview, size: int) -> memoryview:
        """Decompresses into memory of the declared size, which the codec inside may keep."""
        try:
            declared = zstandard.get_frame_parameters(packed).content_size
            if declared != size:
                raise DecodeError(f"the table says {size} bytes, the zstd frame {declared}")
            raw = aligned_buffer(size)
            self._fill(raw, packed)
        except (zstandard.ZstdError, MemoryError) as exc:
            raise DecodeError(f"damaged zstd frame: {exc}") from exc
        return raw

    def _fill(self, raw: memoryview, packed: memoryview) -> None:
        filled = 0
        with self._contexts.decompressor.stream_reader(packed, read_across_frames=True) as reader:
            while filled < len(raw) and (count := reader.readinto(raw[filled:])):
                filled += count
            if filled != len(raw) or reader.read(1):
                raise DecodeError(f"a zstd frame has other than its {len(raw)} bytes")


class _Contexts(threading.local):
    """zstandard's contexts are costly to make and not thread-safe."""

    def __init__(self, level: int) -> None:
        self.compressor = zstandard.ZstdCompressor(level=level)
        self.decompressor = zstandard.ZstdDecompressor()


def _sample(view: memoryview) -> bytes:
    """Pieces at a fixed stride, head and tail included, so that equal frames are always treated alike."""
    stride = (view.nbytes - _SAMPLE_NBYTES) // (_NUM_SAMPLES - 1)
    starts = [*range(0, stride * (_NUM_SAMPLES - 1), stride), view.nbytes - _SAMPLE_NBYTES]
    return b"".join(view[start : start + _SAMPLE_NBYTES] for start in starts)


def _pad(packed: bytes, raw_nbytes: int) -> bytes:
    """Copies a compressed frame out of the larger memory that zstandard keeps it in; a skippable frame pads it."""
    num_missing = max(0, -(-raw_nbytes // _MAX_RATIO) - len(packed))
    padding = _SKIPPABLE.pack(_SKIPPABLE_MAGIC, num_missing) + bytes(num_missing) if num_missing else b""
    return b"".join((memoryview(packed), padding))


def _check_sizes(sizes: Sequence[int], frames: Sequence[memoryview], limits: Limits) -> None:
    """Believes a declared size only as far as `limits` go.

    Raises:
        LimitError: It is above them; nothing has been allocated.
    """
    total = 0
    for size, frame in zip(sizes, frames, strict=True):
        nbytes = len(frame) if size == _STORED else size
        total += nbytes
        too_dense = size != _STORED and size > len(frame) * limits.expansion_ratio
        if too_dense or nbytes > limits.frame_nbytes or total > limits.payload_nbytes:
            raise LimitError(f"a frame of {len(frame)} bytes declares {nbytes} decompressed, above {limits}")
