"""Zstandard over the frames of another codec, frame by frame, where a sample says that it pays."""

import struct
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import zstandard

from gather_core.blocks import result_buffer
from gather_core.codec import Buffer, Codec, DecodeOptions, Frames, Limits
from gather_core.errors import DecodeError, LimitError

DEFAULT_LEVEL = 1
DEFAULT_MIN_NBYTES = 10_000
DEFAULT_MAX_RATIO = 0.7
_SAMPLE_NBYTES = 10_000
_NUM_SAMPLES = 5
_STORED = (1 << 64) - 1
"""In the table, in place of a decompressed size: this frame is not compressed."""
_DEFAULTS = Limits()
_MAX_EXPANSION = _DEFAULTS.expansion_ratio // 2
"""Frames of zeros shrink up to 32,768 times; padded to this they stay below the default limit."""
_WINDOW_NBYTES = 1 << 10
"""The least that zstd takes: a frame goes in one piece into memory of its declared size, and needs no window."""
_BLOCK_HEADER_NBYTES = 3
_BLOCK_OF_ONE_BYTE = 1
_CHECKSUM_NBYTES = 4
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
        max_ratio: Frames of which a sample, or the whole, stays above this share of its size are stored; above 0, at
            most 1.
    """

    name = "zstd"

    def __init__(
        self,
        inner: Codec,
        *,
        level: int = DEFAULT_LEVEL,
        min_nbytes: int = DEFAULT_MIN_NBYTES,
        max_ratio: float = DEFAULT_MAX_RATIO,
    ) -> None:
        if type(level) is not int or not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise ValueError(f"level must be an int from 1 to {zstandard.MAX_COMPRESSION_LEVEL}, not {level!r}")
        if type(min_nbytes) is not int or min_nbytes < 1:
            raise ValueError(f"min_nbytes must be an int of at least 1, not {min_nbytes!r}")
        if type(max_ratio) not in (int, float) or not 0 < max_ratio <= 1:
            raise ValueError(f"max_ratio must be a number above 0 and at most 1, not {max_ratio!r}")
        self._inner = inner
        self._level = level
        self._min_nbytes = min_nbytes
        self._max_ratio = float(max_ratio)
        self._contexts = _Contexts(level)

    def __reduce__(self) -> Any:
        """Copies and pickles are built from the arguments: zstandard's contexts are neither."""
        options: dict[str, Any] = {"level": self._level, "min_nbytes": self._min_nbytes, "max_ratio": self._max_ratio}
        return partial(type(self), **options), (self._inner,)

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
        if self._max_ratio != DEFAULT_MAX_RATIO:
            options.append(f"max_ratio={self._max_ratio}")
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
            if len(compressor.compress(sample)) > self._max_ratio * len(sample):
                return None
        packed = compressor.compress(view)
        return _pad(packed, view.nbytes) if len(packed) <= self._max_ratio * view.nbytes else None

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
            frame, declared = _one_frame(packed)
            if declared != size:
                raise DecodeError(f"the table says {size} bytes, the zstd frame {declared}")
            raw = result_buffer(size)
            self._fill(raw, frame)
        except (zstandard.ZstdError, MemoryError) as exc:
            raise DecodeError(f"damaged zstd frame: {exc}") from exc
        return raw

    def _fill(self, raw: memoryview, frame: memoryview) -> None:
        filled = 0
        with self._contexts.decompressor.stream_reader(frame) as reader:
            while filled < len(raw) and (count := reader.readinto(raw[filled:])):
                filled += count
            if filled != len(raw) or reader.read(1):
                raise DecodeError(f"a zstd frame has other than its {len(raw)} bytes")


class _Contexts(threading.local):
    """zstandard's contexts are costly to make and not thread-safe."""

    def __init__(self, level: int) -> None:
        self.compressor = zstandard.ZstdCompressor(level=level)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_NBYTES)


def _sample(view: memoryview) -> bytes:
    """Pieces at a fixed stride, head and tail included, so that equal frames are always treated alike."""
    stride = (view.nbytes - _SAMPLE_NBYTES) // (_NUM_SAMPLES - 1)
    starts = [*range(0, stride * (_NUM_SAMPLES - 1), stride), view.nbytes - _SAMPLE_NBYTES]
    return b"".join(view[start : start + _SAMPLE_NBYTES] for start in starts)


def _pad(packed: bytes, raw_nbytes: int) -> bytes:
    """Copies a compressed frame out of the larger memory that zstandard keeps it in; a skippable frame pads it."""
    num_missing = max(0, -(-raw_nbytes // _MAX_EXPANSION) - len(packed))
    padding = _SKIPPABLE.pack(_SKIPPABLE_MAGIC, num_missing) + bytes(num_missing) if num_missing else b""
    return b"".join((memoryview(packed), padding))


def _one_frame(packed: memoryview) -> tuple[memoryview, int]:
    """The one frame in front of `_pad`'s padding, and the size that it declares.

    Raises:
        DecodeError: There is something else, or more, or not all of it.
    """
    parameters = zstandard.get_frame_parameters(packed)
    end = _end_of_frame(packed) + (_CHECKSUM_NBYTES if parameters.has_checksum else 0)
    num_behind = len(packed) - end
    is_padded = packed[end : end + _SKIPPABLE.size] == _SKIPPABLE.pack(_SKIPPABLE_MAGIC, max(num_behind, 8) - 8)
    if packed[:4] != zstandard.FRAME_HEADER or not (num_behind == 0 or is_padded):
        raise DecodeError(f"{len(packed)} bytes are not one zstd frame")
    return packed[:end], parameters.content_size


def _end_of_frame(packed: memoryview) -> int:
    """Where the blocks of the first frame end, by their headers (RFC 8878, section 3.1.1.2)."""
    end: int = zstandard.frame_header_size(packed)
    header = 0
    while not header & 1:
        header = int.from_bytes(packed[end : end + _BLOCK_HEADER_NBYTES], "little")
        end += _BLOCK_HEADER_NBYTES + (1 if header >> 1 & 3 == _BLOCK_OF_ONE_BYTE else header >> 3)
        if end > len(packed):
            raise DecodeError(f"{len(packed)} bytes are not all of a zstd frame")
    return end


def _check_sizes(sizes: Sequence[int], frames: Sequence[memoryview], limits: Limits) -> None:
    """Believes a declared size only as far as `limits` go.

    Raises:
        LimitError: It is above them; nothing has been allocated.
    """
    total = 0
    for size, frame in zip(sizes, frames, strict=True):
        nbytes = len(frame) if size == _STORED else size
        total += nbytes
        declares = f"a frame of {len(frame)} bytes declares {nbytes} decompressed"
        if size != _STORED and size > len(frame) * limits.expansion_ratio:
            raise LimitError(f"{declares}, above Limits.expansion_ratio={limits.expansion_ratio}")
        if nbytes > limits.frame_nbytes:
            raise LimitError(f"{declares}, above Limits.frame_nbytes={limits.frame_nbytes}")
        if total > limits.payload_nbytes:
            raise LimitError(f"{declares}, {total} in all, above Limits.payload_nbytes={limits.payload_nbytes}")
