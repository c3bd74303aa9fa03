"""MessagePack for plain data, arrays and tensors: every type comes back exactly, or encoding refuses it.

Types that MessagePack lacks travel as extension types, whose codes are part of the wire (`message_types.py`).
Containers hold nested MessagePack; arrays and tensors hold metadata and their elements, or the number of the frame with
those; objects of registered classes (`message_registry.py`) hold their tag and what they were taken apart into.
Encoding is `message_lowering.py`; decoding, `message_rebuild.py` and `message_unpacking.py`, builds these types and
nothing else.
"""

from collections.abc import Sequence

from gather_codecs.message_hashes import LookAgainError
from gather_codecs.message_lowering import Lowering, pack_plain
from gather_codecs.message_paths import Refusal
from gather_codecs.message_rebuild import Rebuild
from gather_codecs.message_registry import register_type, registered_types
from gather_codecs.message_unpacking import NotPlainError, unpack_plain
from gather_core.codec import Codec, DecodeOptions, Frames, Trust
from gather_core.errors import DecodeError, EncodeError, LimitError

__all__ = ["MessagePackCodec", "register_type"]


class MessagePackCodec(Codec):
    """Data only: decoding cannot run code. Exact or refused, with the path of what it refuses.

    Takes None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, OrderedDict, Counter, set,
    frozenset, datetime, date, time, timedelta, Decimal, Fraction, UUID, paths, slice, range, numpy arrays,
    scalars and dtypes of numbers, times, text, bytes and records, dense torch tensors, dtypes, devices and sizes; no
    subclasses of them. Enums, namedtuples, dataclasses and any other class must be registered on every rank:
    `register_type`.
    References that share an object arrive as separate ones; cycles are refused. Arrays and tensors arrive writable.
    Tensors keep their strides where their elements lie without gaps (channels_last, transposed), and arrive row-major
    otherwise; detached unless they are leaves, whose `requires_grad` stays; and without hooks, which torch.save drops
    too. A leaf that has a `.grad` is refused.

    Every tuple, set or other type that MessagePack lacks is copied once per level that it is nested; decoding refuses
    to hold more than `Limits.payload_nbytes` in such copies at a time.

    Args:
        sorted_sets: Whether equal sets give equal bytes on every rank. Takes longer; what arrives is the same.
    """

    name = "msgpack"
    trust = Trust.DATA

    def __init__(self, *, sorted_sets: bool = False) -> None:
        if type(sorted_sets) is not bool:
            raise ValueError(f"sorted_sets must be true or false, not {sorted_sets!r}")
        self._sorted_sets = sorted_sets

    @property
    def spec(self) -> str:
        return f"{self.name}:sorted_sets=true" if self._sorted_sets else self.name

    def fingerprint(self) -> str:
        """The name, and the registered classes: a rank that lacks one cannot read what holds it."""
        return self.name + registered_types().fingerprint()

    def encode(self, obj: object) -> Frames:
        plain = pack_plain(obj)
        if plain is not None:
            return [plain]
        try:
            try:
                return self._frames(obj)
            except LookAgainError:
                return self._frames(obj, is_careful=True)
        except Refusal as refusal:
            raise EncodeError(f"msgpack cannot encode {refusal.path}: {refusal.reason}") from refusal
        except Exception as exc:
            raise EncodeError(f"msgpack cannot encode this {type(obj).__name__}: {exc}") from exc

    def _frames(self, obj: object, *, is_careful: bool = False) -> Frames:
        lowering = Lowering(registered_types(), sorted_sets=self._sorted_sets, is_careful=is_careful)
        return [lowering.lower(obj), *lowering.frames]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if not frames:
            raise DecodeError("no frames")
        try:
            return _decode(frames, options)
        except (DecodeError, LimitError):
            raise
        except Exception as exc:
            raise DecodeError(f"not what the msgpack codec writes: {type(exc).__name__}: {exc}") from exc


def _decode(frames: Sequence[memoryview], options: DecodeOptions) -> object:
    try:
        return unpack_plain(frames, options.limits)
    except NotPlainError:
        pass
    try:
        return Rebuild(frames, options, registered_types()).decode()
    except LookAgainError:
        return Rebuild(frames, options, registered_types(), looks_at_keys=True).decode()
