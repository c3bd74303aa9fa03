"""The codec seam: one object to frames and back. A codec knows no ranks, groups or transports."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Literal, TypeAlias

from gather_core.blocks import result_buffer

__all__ = ["Buffer", "Codec", "DecodeOptions", "Frames", "Limits", "TensorDevice", "Trust"]

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Frames: TypeAlias = Sequence[Buffer]
"""What encode returns: C-contiguous byte buffers, the head first. Large buffers alias the object and are not copied."""

TensorDevice: TypeAlias = "Literal['cpu', 'current'] | Callable[[object], object]"
"""Where decoded tensors land: CPU, this process's current accelerator, or what a function of the CPU tensor returns."""


class Trust(Enum):
    """What decoding bytes of this codec can do. A declaration by the codec's author, not a proof."""

    DATA = "data"
    """Decoding only builds allow-listed types."""
    CODE = "code"
    """Decoding can execute code that the sender chose."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what is believed from the wire, checked before anything is allocated.

    They must be equal on every rank (round 0 compares them). Who checks what:

    - `payload_nbytes`, `num_frames`, `frame_nbytes`: the sender, before anything is sent, so that such a payload is
      refused by all ranks or by none; and each receiver, in the header and the frame table.
    - The first and the third again, and `expansion_ratio`: a compressor (`zstd`), before it decompresses a frame.
    - `depth`, `container_length`, `string_nbytes`, and `payload_nbytes` for the copies that it makes of nested data:
      a codec that builds nothing but data (`msgpack`), while it decodes.

    What a codec learns only while it decodes, it refuses on the rank that decodes, and only that rank raises. `encode`
    is not told these limits: what it refuses depends on the object alone. The built-in codecs encode nothing that the
    defaults would refuse; lower limits may refuse on the receivers what the sender could send. Codecs that can run code
    check none of the last three: their bytes can do anything. `raw` builds no containers and has no use for them.
    """

    payload_nbytes: int = 1 << 36
    """One rank's encoded object, in bytes, also after decompression; and what decoding it copies at any one time."""
    num_frames: int = 1 << 20
    """Frames of one object."""
    frame_nbytes: int = 1 << 36
    """One frame, in bytes, also after decompression."""
    expansion_ratio: int = 20_000
    """Decompressed over compressed size of one frame; the built-in zstd never writes more than half the default."""
    depth: int = 100
    """Levels of containers below the outermost: `[[1]]` is 1 deep, and 101 nested lists are allowed. Msgpack goes no
    deeper than the default, whatever is allowed here."""
    container_length: int = (1 << 32) - 1
    """Items of one list, tuple, set or dict inside a message; the default is what MessagePack can say."""
    string_nbytes: int = (1 << 32) - 1
    """Bytes of one str, bytes or bytearray inside a message, arrays sent inside it included (msgpack: below 1 KiB);
    the default is what MessagePack can say."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"Limits.{name} must be an int of at least 1, not {value!r}")


@dataclass(frozen=True)
class DecodeOptions:
    """What the receiving rank decides about decoding; never taken from the wire."""

    tensor_device: TensorDevice = "cpu"
    limits: Limits = field(default_factory=Limits)


class Codec(ABC):
    """Turns one object into frames and back.

    Stateless between calls and thread-safe: ranks may be threads of one process. The round trip is exact or `encode`
    raises: an object is never silently changed.
    """

    name: ClassVar[str]
    """The registry key, lower case."""
    trust: ClassVar[Trust] = Trust.CODE
    """What decoding can do, as the codec declares it; a promise of its author, not a proof."""
    wire_version: ClassVar[int] = 1
    """Of the frames: goes up by one in the release whose frames the release before would misread or refuse.

    `decode` goes on to read those of all earlier versions, which may have been kept, and tells them by their bytes.
    """

    @abstractmethod
    def encode(self, obj: object) -> Frames:
        """Returns the object as frames; buffers of the object may be aliased, and are read until the operation ends.

        Raises:
            EncodeError: The object cannot be encoded exactly. The Gatherer wraps any other exception in one.
        """

    @abstractmethod
    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:
        """Rebuilds the object.

        The frames are 64-byte aligned. A read-only one is **borrowed**: what the object keeps of it must be copied,
        because the memory is reused as soon as this call has returned. A writable one is a gift: the object may keep
        it. `own` does the right thing for both.

        Raises:
            DecodeError: The frames are not what `encode` writes. The Gatherer wraps any other exception in one.
            LimitError: Decoding them would take more than `options.limits` allow.
        """

    @property
    def spec(self) -> str:
        """The canonical spec string: name and the options that differ from the default."""
        return self.name

    def fingerprint(self) -> str:
        """Equal on ranks that can read each other's frames; compared before the first byte is sent.

        An override keeps "wire N" in it, where N is `wire_version` and not 1.
        """
        return self.spec if self.wire_version == 1 else f"{self.spec} wire {self.wire_version}"


def own(frame: memoryview) -> memoryview:
    """Returns writable memory that the decoded object may keep: the frame itself, or a copy where it is borrowed."""
    if not frame.readonly:
        return frame
    copy = result_buffer(frame.nbytes)
    copy[:] = frame
    return copy
