"""A codec from a pair of functions, such as `json.dumps` and `json.loads`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gather_core.codec import Codec, DecodeOptions, Frames, Trust
from gather_core.errors import DecodeError, EncodeError, SettingsError, summarize
from gather_core.spec import NAME

_HINT = "; loads gets bytes, also where dumps returns a str (which travels as UTF-8): decode them in it"


class FunctionCodec(Codec):
    """Encodes with one function and decodes with another: `FunctionCodec("json", json.dumps, json.loads)`.

    One frame. What keeps an object exact is up to the functions: JSON for one turns tuples into lists, and keys of
    dicts into strings. What they raise becomes an EncodeError or DecodeError of this rank. Both must be thread-safe.

    Round 0 compares the name of the codec and the qualified names of the functions, of partials those of what they
    call; never modules, as one function is in `__main__` on a rank and in `__mp_main__` on another. So all lambdas are
    taken for the same.

    Args:
        name: How messages and logs call it; of a-z, 0-9 and _, starting with a letter.
        dumps: Object to bytes-like, or to a str, which travels as UTF-8. It must not use the memory again.
        loads: bytes to object; bytes also where `dumps` returns a str.
        trust: Trust.DATA if decoding any bytes whatever cannot execute code.

    Raises:
        SettingsError: One of them is something else.
    """

    name: str  # type: ignore[misc]  # of the object: the class has none, as it cannot be built from a spec

    def __init__(
        self,
        name: str,
        dumps: Callable[[Any], Any],
        loads: Callable[[bytes], Any],
        *,
        trust: Trust = Trust.CODE,
    ) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):  # type: ignore[redundant-expr]
            raise SettingsError(f"the name of a codec must be of a-z, 0-9 and _ and start with a letter, not {name!r}")
        for role, function in (("dumps", dumps), ("loads", loads)):
            if not callable(function):
                raise SettingsError(f"{role} of codec {name!r} must be a function, not {function!r:.80}")
        if not isinstance(trust, Trust):
            raise SettingsError(f"trust of codec {name!r} must be Trust.DATA or Trust.CODE, not {trust!r:.80}")
        self.name = name
        self.trust = trust  # type: ignore[misc]  # as the name
        self._dumps = dumps
        self._loads = loads

    def fingerprint(self) -> str:
        """Equal on ranks that were given the same name, and functions of the same qualified names."""
        return f"{self.spec} by {_qualified_name(self._dumps)} and {_qualified_name(self._loads)}"

    def encode(self, obj: object) -> Frames:
        """Returns what `dumps` returns as one frame."""
        dumped = self._dumps(obj)
        if type(dumped) is bytes:
            return [dumped]
        if isinstance(dumped, str):
            return [self._as_utf8(dumped)]
        try:
            return [memoryview(dumped).cast("B")]
        except TypeError as exc:
            kind = type(dumped).__name__
            raise EncodeError(
                f"dumps of codec {self.name!r} must return bytes, contiguous bytes-like memory or str; "
                f"it returned {kind} ({exc})"
            ) from exc

    def _as_utf8(self, text: str) -> bytes:
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise EncodeError(
                f"dumps of codec {self.name!r} returned a str that is no UTF-8: {exc}; escape it in dumps, or return "
                "bytes"
            ) from exc

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        """Returns what `loads` makes of the bytes of the frame."""
        if len(frames) != 1:
            raise DecodeError(f"codec {self.name!r} writes 1 frame, not {len(frames)}")
        data = bytes(frames[0])
        try:
            return self._loads(data)
        except Exception as exc:
            hint = _HINT if isinstance(exc, TypeError | AttributeError) else ""
            raise DecodeError(
                f"loads of codec {self.name!r} failed on {len(data)} bytes: {summarize(exc)}{hint}"
            ) from exc


def _qualified_name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__
