"""Ways to turn an object into bytes and back: codecs as a Gatherer calls them, and what they are compared with."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgpack

from gather_core import Codec, DecodeOptions, EncodeError
from gather_core.codec_border import CodecBorder
from gather_core.memory import aligned_buffer


@dataclass(frozen=True)
class EncodedPayload:
    """One payload in the bytes of one way, ready to be timed."""

    nbytes: int
    encode: Callable[[], object]
    """Encodes the object again."""
    decode: Callable[[], Any]
    """Decodes the bytes again: what it returns must be the object."""


@dataclass(frozen=True)
class CodecWay:
    """A codec or a peer of it."""

    name: str
    make_ready: Callable[[Any], EncodedPayload]
    """Encodes an object once; raises a CodecError where the way refuses it."""
    is_peer: bool = False


def codec_way(codec: Codec) -> CodecWay:
    """A codec; it decodes from frames that are aligned and only lent, as those of a slot are."""
    return CodecWay(codec.spec, partial(_encoded_by_codec, codec))


def _encoded_by_codec(codec: Codec, obj: Any) -> EncodedPayload:
    options = DecodeOptions()
    frames = CodecBorder(codec, options).encode(obj)
    landed = [_landed(frame) for frame in frames]
    return EncodedPayload(sum(map(len, frames)), partial(codec.encode, obj), partial(codec.decode, landed, options))


def _landed(frame: Any) -> memoryview:
    memory = aligned_buffer(len(frame))
    memory[:] = frame
    return memory.toreadonly()


def peer_ways() -> Sequence[CodecWay]:
    """Pickle and msgpack-python as they are called without gather-core."""
    return [
        CodecWay("bare pickle", partial(_encoded_by_pair, pickle.dumps, pickle.loads), is_peer=True),
        CodecWay("bare msgpack", partial(_encoded_by_pair, msgpack.packb, _unpackb), is_peer=True),
    ]


_unpackb = partial(msgpack.unpackb, strict_map_key=False)
"""Without the option it does not read the dicts with int keys that `packb` writes."""


def _encoded_by_pair(dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any], obj: Any) -> EncodedPayload:
    try:
        encoded = dumps(obj)
    except Exception as exc:
        raise EncodeError(str(exc)) from exc
    return EncodedPayload(len(encoded), partial(dumps, obj), partial(loads, encoded))
