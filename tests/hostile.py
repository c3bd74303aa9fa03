"""Hostile frames: what a `Confined` process does with them, importable there by name, and what is made of that."""

import contextlib
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from confined import Outcome
from gather_core.codec import Codec, DecodeOptions, Limits
from gather_core.errors import CodecError, DecodeError, LimitError, ProtocolError
from gather_core.exactness import difference, parts
from gather_core.registry import get_codec
from gather_core.slot import HEADER_NBYTES, check_lengths, parse_agreement, read_frames, read_header
from gather_core.testing.codec_frames import Landed

Message = Sequence[bytes]
"""The frames of one object."""

_NONE = Limits()


def decode(spec: str, frames: Message, limits: Limits = _NONE) -> object:
    """Decodes with the codec of that spec, from memory that is borrowed and aligned as a Gatherer's is."""
    return get_codec(spec).decode(Landed(frames).views, DecodeOptions(limits=limits))


def outcomes(spec: str, messages: Iterable[Message], limits: Limits = _NONE) -> list[str]:
    """What decoding each message came to: "value", or the name of an error of ours.

    Raises:
        AssertionError: One came to something else, which is the cause.
    """
    codec = get_codec(spec)
    seen = []
    for number, frames in enumerate(messages):
        try:
            codec.decode(Landed(frames).views, DecodeOptions(limits=limits))
            seen.append("value")
        except (DecodeError, LimitError) as exc:
            seen.append(type(exc).__name__)
        except Exception as exc:
            raise AssertionError(f"message {number}, {frames!r:.200}, came to {exc!r:.200}") from exc
    return seen


def refusal(outcome: Outcome) -> CodecError:
    """(the test) The error with which a call refused its input, which must not be that there is no more memory."""
    error = outcome.error
    assert isinstance(error, DecodeError | LimitError), f"{outcome!r:.400}"
    assert not ran_out_of_memory(error), f"{outcome!r:.400}"
    return error


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that there is no more memory; zstd has no type for that."""
    while error is not None:
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            return True
        error = error.__cause__
    return False


def damaged_slots(spec: str, slots: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """What each slot, given before and after it was damaged, came to: "same" object, "changed", or an error of ours.

    Raises:
        Exception: Whatever else one came to.
    """
    codec = get_codec(spec)
    seen = []
    for whole, damaged in slots:
        before = _read_slot(codec, whole)
        try:
            seen.append("same" if difference(_read_slot(codec, damaged), before) is None else "changed")
        except (DecodeError, LimitError, ProtocolError) as exc:
            seen.append(type(exc).__name__)
    return seen


def _read_slot(codec: Codec, slot: bytes) -> tuple[int, object]:
    view = memoryview(slot)
    header = read_header(view)
    parse_agreement(header.agreement)
    check_lengths(header, _NONE)
    payload = view[HEADER_NBYTES : HEADER_NBYTES + header.total_nbytes]
    if len(payload) != header.total_nbytes:
        raise ProtocolError("the payload is not all here")
    frames = read_frames(payload, header, _NONE, frames_checked=True)
    return header.rank, codec.decode(Landed(frames).views)


def types_of(spec: str, messages: Iterable[Message]) -> dict[str, int]:
    """How often each type is in the objects that can be decoded, by qualified name; "errors" counts the others."""
    codec = get_codec(spec)
    seen: Counter[str] = Counter()
    for frames in messages:
        try:
            decoded = codec.decode(Landed(frames).views)
        except CodecError:
            seen["errors"] += 1
        else:
            seen.update(f"{type(part).__module__}.{type(part).__qualname__}" for part in parts(decoded))
    return dict(seen)


_watched: list[tuple[str, str]] | None = None
_hooked: list[bool] = []
_CODE = ("pickle.", "exec", "compile", "marshal.", "import", "os.system", "os.exec", "os.posix_spawn", "subprocess.")


def _watch(event: str, arguments: Sequence[object]) -> None:
    if _watched is not None and (event == "open" or event.startswith(_CODE)):
        _watched.append((event, str(arguments[0])))


def events_of(spec: str, messages: Iterable[Message]) -> list[tuple[str, str]]:
    """What the interpreter reports while messages are decoded: code that is loaded or run, files that are opened.

    Each with what it is about: a module, a path, a command.
    """
    global _watched
    if not _hooked:
        sys.addaudithook(_watch)  # cannot be taken away again
        _hooked.append(True)
    codec = get_codec(spec)
    seen: list[tuple[str, str]] = []
    _watched = seen
    try:
        for frames in messages:
            with contextlib.suppress(CodecError):
                codec.decode(Landed(frames).views)
    finally:
        _watched = None
    return seen


def hog(nbytes: int) -> int:
    """Takes memory and gives it back."""
    return len(bytearray(nbytes))


def hang() -> None:
    """Does not come back."""
    while True:
        time.sleep(3600)


def crash() -> None:
    """Dies as a fault in compiled code does."""
    signal.raise_signal(signal.SIGSEGV)


def unpicklable() -> object:
    """Returns what cannot be sent back."""
    return lambda: None


def fail() -> None:
    """Raises an error with a cause."""
    try:
        pickle.loads(b"")
    except EOFError as exc:
        raise DecodeError("cannot be read") from exc
