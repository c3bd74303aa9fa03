"""What a run was asked to measure."""

from dataclasses import dataclass

DEFAULT_CODECS = ("pickle", "msgpack")
DEFAULT_TRANSPORTS = ("auto",)
DEFAULT_PAYLOADS = ("metrics", "dpr_step", "array:1MiB")
DEFAULT_SLOT_NBYTES = 16 * 1024
DEFAULT_ROUNDS = 15


@dataclass(frozen=True)
class Options:
    """The cross product of codecs and transports, on each payload."""

    codecs: tuple[str, ...] = DEFAULT_CODECS
    transports: tuple[str, ...] = DEFAULT_TRANSPORTS
    payloads: tuple[str, ...] = DEFAULT_PAYLOADS
    slot_nbytes: int = DEFAULT_SLOT_NBYTES
    rounds: int = DEFAULT_ROUNDS
    """Counted rounds, of all launches together; in each, one more warms up."""
    calls: int | None = None
    """Calls behind one barrier; None: as many as fill a round of some 30 ms, 2 to 20,000."""
    peers: bool = True
    launches: int = 1
    """How often local workers are started anew."""


QUICK = Options(payloads=("metrics", "dpr_step", "array:256KiB"), rounds=5)
"""What ends in under a minute on two cores, start of the workers included."""
