"""Zstandard over the frames of another codec, frame by frame, where a sample says that it pays."""

import struct
import threading
from collections.abc import Sequence
from typing import Any

import zstandard

from gather_core.codec import Codec, DecodeOptions, Frames, Limits
from gather_core.errors import DecodeError, LimitError
from gather_core.memory import aligned_buffer

DEFAULT_LEVEL = 1
DEFAULT_MIN_NBYTES = 10_000
_WORTH_IT = 0.7
_SAMPLE_NBYTES = 10_000
_NUM_SAMPLES = 5
_STORED = (1 << 64) - 1
"""In the table, in place of a decompressed size: this frame is not compressed."""


class ZstdCodec(Codec):
    """Compresses what another codec writes; decodes what that codec decodes.

    The first frame is a table with one u64 per frame: its decompressed size in bytes, or all ones where it is stored.

    Args:
        inner: The codec whose frames are compressed.
        level: zstd's compression level, 1 to 22.
        min_nbytes: Smaller frames are stored.
    """

    name = "zstd"

    def __init__(self, inner: Codec, *, level: int = DEFAULT_LEVEL, min_nbytes: int = DEFAULT_MIN_NBYTES) -> None:
        if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise ValueError(f"level must be from 1 to {zstandard.MAX_COMPRESSION_LEVEL}, not {level}")
        if min_nbytes < 1:
            raise ValueError(f"min_nbytes must be at least 1, not {min_nbytes}")
        self._inner = inner
        self._level = level
        self._min_nbytes = min_nbytes
        self._contexts = threading.local()  # zstandard's contexts are not thread-safe

    @property
    def trust(self) -> Any:  # type: ignore[override]
        """What decoding can do is up to the codec inside."""
        return self._inner.trust

    @property
    def spec(self) -> str:
        options = []
        if self._level != DEFAULT_LEVEL:
            options.append(f"level={self._level}")
        if self._min_nbytes != DEFAULT_MIN_NBYTES:
            options.append(f"min_nbytes={self._min_nbytes}")
        return f"{self._inner.spec}+zstd" + (f":{','.join(options)}" if options else "")

    def fingerprint(self) -> str:
        return f"{self._inner.fingerprint()}+zstd"

    def encode(self, obj: object) -> Frames:
        sizes = []
        stored: list[Any] = []
        for frame in self._inner.encode(obj):
            view = memoryview(frame).cast("B")
            packed = self._compress(view)
            sizes.append(_STORED if packed is None else view.nbytes)
            stored.append(view if packed is None else packed)
        return [struct.pack(f"<{len(sizes)}Q", *sizes), *stored]

    def _compress(self, view: memoryview) -> bytes | None:
        """Returns the compressed frame, or None where it does not pay."""
        if view.nbytes < self._min_nbytes:
            return None
        compressor = self._compressor()
        if view.nbytes > _NUM_SAMPLES * _SAMPLE_NBYTES:
            stride = (view.nbytes - _SAMPLE_NBYTES) // (_NUM_SAMPLES - 1)
            sample = b"".join(view[i * stride : i * stride + _SAMPLE_NBYTES] for i in range(_NUM_SAMPLES))
            if len(compressor.compress(sample)) > _WORTH_IT * len(sample):
                return None
        packed = compressor.compress(view)
        return bytes(packed) if len(packed) <= _WORTH_IT * view.nbytes else None

    def _compressor(self) -> zstandard.ZstdCompressor:
        if not hasattr(self._contexts, "compressor"):
            self._contexts.compressor = zstandard.ZstdCompressor(level=self._level)
        compressor: zstandard.ZstdCompressor = self._contexts.compressor
        return compressor

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if not frames or len(frames[0]) != 8 * (len(frames) - 1):
            raise DecodeError("the table of decompressed sizes does not fit the frames")
        sizes = struct.unpack(f"<{len(frames) - 1}Q", frames[0])
        raw = [
            frame if size == _STORED else self._decompress(frame, size, options.limits)
            for frame, size in zip(frames[1:], sizes, strict=True)
        ]
        return self._inner.decode(raw, options)

    def _decompress(self, packed: memoryview, size: int, limits: Limits) -> memoryview:
        """Decompresses into memory of the declared size, which is believed only as far as `limits` go."""
        if size > limits.frame_nbytes or size > len(packed) * limits.expansion_ratio:
            raise LimitError(f"a frame of {len(packed)} bytes declares {size} decompressed, above {limits}")
        try:
            parameters = zstandard.get_frame_parameters(packed)
            if parameters.content_size != size:
                raise DecodeError(f"the table says {size} bytes, the zstd frame {parameters.content_size}")
            return self._read(packed, size)
        except (zstandard.ZstdError, MemoryError) as exc:
            raise DecodeError(f"damaged zstd frame: {exc}") from exc

    def _read(self, packed: memoryview, size: int) -> memoryview:
        raw = aligned_buffer(size)
        filled = 0
        with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as reader:
            while filled < size and (count := reader.readinto(raw[filled:])):
                filled += count
            if filled != size or reader.read(1):
                raise DecodeError(f"a zstd frame has other than its {size} bytes")
        return raw.toreadonly()
