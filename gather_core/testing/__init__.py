"""For authors of plug-ins: contract suites that a codec's or transport's test class inherits. Needs pytest."""

from gather_core.testing.codec_contract import CodecContract
from gather_core.testing.transport_contract import TransportContract

__all__ = ["CodecContract", "TransportContract"]
