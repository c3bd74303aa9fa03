"""Gather any Python object from every rank of a distributed job, through a codec and a transport chosen by name."""

from typing import TYPE_CHECKING, Any

from gather_core.errors import (
    AbortedError,
    ClosedError,
    CodecError,
    DecodeError,
    DesyncError,
    EncodeError,
    GatherError,
    GroupBrokenError,
    LimitError,
    PeerLostError,
    ProtocolError,
    RankFailedError,
    ReduceError,
    RemoteCallError,
    RemoteDecodeError,
    RemoteEncodeError,
    SettingsError,
    SetupError,
    SlotOverflowError,
    TransportError,
    TransportTimeoutError,
    UnknownPluginError,
    UntrustedCodecError,
)
from gather_core.interleave import interleave

if TYPE_CHECKING:
    from gather_core.blocks import drop_free_blocks, result_buffer
    from gather_core.codec import Codec, DecodeOptions, Frames, Limits, Trust, own
    from gather_core.deadline import Deadline
    from gather_core.function_codec import FunctionCodec
    from gather_core.gatherer import Gatherer
    from gather_core.lazy import LazyObjects
    from gather_core.memory import aligned_buffer
    from gather_core.registry import register_codec, register_transport
    from gather_core.settings import GatherSettings
    from gather_core.stats import GroupStats, Stats, TagStats
    from gather_core.stream import GatherStream, StreamProgress
    from gather_core.transport import Capabilities, GroupContext, PeerState, Transport

__version__ = "0.1.0"

__all__ = [
    "AbortedError",
    "Capabilities",
    "ClosedError",
    "Codec",
    "CodecError",
    "Deadline",
    "DecodeError",
    "DecodeOptions",
    "DesyncError",
    "EncodeError",
    "Frames",
    "FunctionCodec",
    "GatherError",
    "GatherSettings",
    "GatherStream",
    "Gatherer",
    "GroupBrokenError",
    "GroupContext",
    "GroupStats",
    "LazyObjects",
    "LimitError",
    "Limits",
    "PeerLostError",
    "PeerState",
    "ProtocolError",
    "RankFailedError",
    "ReduceError",
    "RemoteCallError",
    "RemoteDecodeError",
    "RemoteEncodeError",
    "SettingsError",
    "SetupError",
    "SlotOverflowError",
    "Stats",
    "StreamProgress",
    "TagStats",
    "Transport",
    "TransportError",
    "TransportTimeoutError",
    "Trust",
    "UnknownPluginError",
    "UntrustedCodecError",
    "aligned_buffer",
    "drop_free_blocks",
    "interleave",
    "own",
    "register_codec",
    "register_transport",
    "result_buffer",
]

_LAZY = {
    "Capabilities": "transport",
    "Codec": "codec",
    "Deadline": "deadline",
    "DecodeOptions": "codec",
    "Frames": "codec",
    "FunctionCodec": "function_codec",
    "GatherSettings": "settings",
    "GatherStream": "stream",
    "Gatherer": "gatherer",
    "GroupContext": "transport",
    "GroupStats": "stats",
    "LazyObjects": "lazy",
    "Limits": "codec",
    "PeerState": "transport",
    "Stats": "stats",
    "StreamProgress": "stream",
    "TagStats": "stats",
    "Transport": "transport",
    "Trust": "codec",
    "aligned_buffer": "memory",
    "drop_free_blocks": "blocks",
    "own": "codec",
    "register_codec": "registry",
    "register_transport": "registry",
    "result_buffer": "blocks",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, so that `import gather_core` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"gather_core.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
