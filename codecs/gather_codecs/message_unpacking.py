"""MessagePack's own unpacker on bytes that may be hostile: within the limits, and believing no claim unchecked."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from gather_codecs.message_hashes import LookAgainError
from gather_codecs.message_types import MAX_DEPTH
from gather_core.codec import Limits
from gather_core.errors import LimitError

_SCAN_FROM_NBYTES = 512
"""Shorter messages cannot claim enough to be worth a scan."""
SCAN_DEPTH_FROM_NBYTES = 8192
"""In shorter messages it is faster to see how deep they are once they are unpacked."""
_PLAIN_UP_TO_NBYTES = 1 << 24
"""Larger messages are not copied to see whether they are plain."""
_UNPACKER_DEPTH = 1024
"""As deep as msgpack's unpacker goes; it is a constant of its C code."""
# timestamp=1: MessagePack's own Timestamp, which encode never writes, can become a float at most.
_EXACTLY: dict[str, Any] = {"unicode_errors": "surrogatepass", "timestamp": 1}
_CONTAINER_HEADERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""Bytes that begin a list or dict, though they may stand for something else."""
_TOO_LONG = re.compile(r"(\d+) exceeds max_(str|bin|array|map)_len\((\d+)\)")


class NotPlainError(Exception):
    """A message must be rebuilt: it is not plain data all the way down, or not sure to be harmless."""


def unpack_plain(frames: Sequence[memoryview], limits: Limits) -> Any:
    """Unpacks one message of plain data, without what `Rebuild` costs.

    That is half the time of a dict of 10 numbers, and a tenth of 5,000 dicts.

    Raises:
        NotPlainError: It must be rebuilt.
        Exception: It is no message.
    """
    head = frames[0]
    nbytes = len(head)
    if len(frames) > 1 or nbytes > _PLAIN_UP_TO_NBYTES:
        raise NotPlainError
    if nbytes >= SCAN_DEPTH_FROM_NBYTES:
        return _unpack_large(head, limits)
    if nbytes >= _SCAN_FROM_NBYTES or nbytes > limits.container_length or nbytes > limits.string_nbytes:
        raise NotPlainError
    message = bytes(head)
    if nbytes - len(message.translate(None, _CONTAINER_HEADERS)) > min(limits.depth, MAX_DEPTH):  # perhaps deeper
        raise NotPlainError
    return msgpack.unpackb(message, **_EXACTLY, strict_map_key=False, ext_hook=_give_up)


def _unpack_large(head: memoryview, limits: Limits) -> Any:
    """Without a scan before it: lists that claim more than a part of the message are left to one that scans.

    So many lists are put around it that the unpacker's own bound is reached where the depth is. Together these bound
    what can be allocated for claims that are not true to some 50 times the message.
    """
    num_around = _num_around(min(limits.depth, MAX_DEPTH))
    nbytes = len(head)
    try:
        obj = msgpack.unpackb(
            b"".join((b"\x91" * num_around, head)),
            **_EXACTLY,
            strict_map_key=True,
            ext_hook=_give_up,
            max_array_len=min(limits.container_length, nbytes // 16),
            **_longest(limits, nbytes),
        )
    except Exception as exc:
        raise NotPlainError from exc
    for _ in range(num_around):
        (obj,) = obj
    return obj


def _longest(limits: Limits, nbytes: int) -> dict[str, int]:
    """How long what is in a message may be, but for lists, for which the unpacker takes memory at once."""
    text_nbytes = min(limits.string_nbytes, nbytes)
    return {
        "max_map_len": min(limits.container_length, nbytes),
        "max_str_len": text_nbytes,
        "max_bin_len": text_nbytes,
    }


def _num_around(max_depth: int) -> int:
    """Lists around a message that leave so much of the unpacker's depth; an empty container at the bottom has none."""
    return _UNPACKER_DEPTH - max_depth - 1


def _give_up(code: int, data: bytes) -> Any:
    raise NotPlainError


def unpack(
    data: Any,
    limits: Limits,
    ext_hook: Callable[[int, bytes], Any],
    pairs_hook: Callable[[list[tuple[Any, Any]]], Any] | None,
) -> Any:
    """Unpacks one message, after a scan that builds nothing has shown that its lengths are true.

    How deep a short one is, the caller sees once it is unpacked.

    Raises:
        LimitError: It is above the limits.
        LookAgainError: There is no `pairs_hook`, and there are dicts whose keys are neither str nor bytes.
        Exception: It is no message.
    """
    nbytes = len(data)
    if nbytes >= _SCAN_FROM_NBYTES:
        _scan(data, min(limits.depth, MAX_DEPTH))
    try:
        return msgpack.unpackb(
            data,
            **_EXACTLY,
            strict_map_key=pairs_hook is None,
            ext_hook=ext_hook,
            object_pairs_hook=pairs_hook,
            **_longest(limits, nbytes),
            max_array_len=min(limits.container_length, nbytes),
        )
    except ValueError as exc:
        if "strict_map_key" in str(exc):
            raise LookAgainError from exc
        _raise_where_too_long(exc, limits)
        raise


def _scan(data: Any, max_depth: int) -> None:
    """Goes through one message without building anything; raises where its lengths are not true, or it is too deep.

    How deep, as in `_unpack_large`.
    """
    around = b"\x91" * _num_around(max_depth) if len(data) >= SCAN_DEPTH_FROM_NBYTES else b""
    scanner = msgpack.Unpacker(max_buffer_size=len(around) + len(data) + 1)
    scanner.feed(around)
    scanner.feed(data)
    try:
        scanner.skip()
    except msgpack.StackError as exc:
        raise too_deep(max_depth) from exc


def too_deep(max_depth: int) -> LimitError:
    """What to raise where containers are nested deeper."""
    return LimitError(f"containers are nested deeper than Limits.depth={max_depth}")


def _raise_where_too_long(exc: ValueError, limits: Limits) -> None:
    found = _TOO_LONG.match(str(exc))
    if found is None:
        return
    name = "string_nbytes" if found[2] in ("str", "bin") else "container_length"
    if int(found[3]) == getattr(limits, name):
        raise LimitError(f"{found[2]} of length {found[1]} is above Limits.{name}={found[3]}") from exc
