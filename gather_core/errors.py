"""Every error that gather-core raises, in one tree.

```
GatherError
├── SettingsError(ValueError)        a bad argument or setting
├── UnknownPluginError(LookupError)  a codec or transport that nobody registered
├── ClosedError                      use after close, or in a forked child
├── CodecError
│   ├── EncodeError                  this rank's object cannot be encoded
│   ├── DecodeError                  a rank's bytes cannot be decoded
│   ├── UntrustedCodecError          a codec that executes code where that is forbidden
│   └── LimitError                   a length above `Limits`
├── RankFailedError                  the same on every rank
│   ├── RemoteEncodeError            arguments, encoding, limits
│   ├── RemoteCallError              the function given to `run`
│   ├── RemoteDecodeError            decoding, with confirm=True
│   ├── ReduceError                  metrics that do not fit together
│   └── SetupError                   construction (round 0)
├── SlotOverflowError                the same on every rank, with overflow="error"
├── ProtocolError                    a slot that cannot be: header, checksum, lengths
│   └── DesyncError                  ranks are at different operations
└── TransportError
    ├── TransportTimeoutError(TimeoutError)
    ├── PeerLostError
    ├── AbortedError
    └── GroupBrokenError
```

After an object-level error (the `RankFailedError` and `SlotOverflowError` branches) the group is usable and in step.
After a `ProtocolError` or a `TransportError` it is broken: every later call raises `GroupBrokenError` at once.
Constructor arguments are positional and kept in `args`, so that errors survive pickling between processes.
"""

from collections.abc import Mapping, Sequence

__all__ = [
    "AbortedError",
    "ClosedError",
    "CodecError",
    "DecodeError",
    "DesyncError",
    "EncodeError",
    "GatherError",
    "GroupBrokenError",
    "LimitError",
    "PeerLostError",
    "ProtocolError",
    "RankFailedError",
    "ReduceError",
    "RemoteCallError",
    "RemoteDecodeError",
    "RemoteEncodeError",
    "SettingsError",
    "SetupError",
    "SlotOverflowError",
    "TransportError",
    "TransportTimeoutError",
    "UnknownPluginError",
    "UntrustedCodecError",
]


_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"} | {
    code: f"\\u{code:04x}" for code in (0x061C, *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
"""Control characters but for line breaks and tabs, other separators of lines, and what changes a text's direction."""

SUMMARY_NBYTES = 4096
"""Longest message of an exception that is passed on, as UTF-8."""


class GatherError(Exception):
    """Base of everything that gather-core raises on purpose."""


class SettingsError(GatherError, ValueError):
    """An argument or setting is wrong; the message names it, its value and what is allowed."""


class UnknownPluginError(GatherError, LookupError):
    """No codec or transport has this name; the message lists the known ones."""


class ClosedError(GatherError):
    """The Gatherer or transport was closed, or belongs to the parent of this forked process."""


class CodecError(GatherError):
    """A codec failed on one rank."""


class EncodeError(CodecError):
    """The object cannot be turned into bytes without losing something."""


class DecodeError(CodecError):
    """The bytes of a rank are not what its codec writes. Local to the rank that raises it; the group stays usable."""


class UntrustedCodecError(CodecError):
    """The codec can execute code while it decodes, and `GATHER_FORBID_CODE=1` forbids that on this rank."""


class LimitError(CodecError):
    """A length or count is above `Limits`; nothing was allocated for it."""


def format_ranks(ranks: Sequence[int]) -> str:
    """Names ranks for a message: "rank 3", or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def shorten(text: str, nbytes: int = SUMMARY_NBYTES) -> str:
    """Cuts out the middle of a text whose UTF-8 is longer than `nbytes`, and says there how long it was."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= nbytes:
        return text
    note = f" ... {len(text)} characters in all ... ".encode()[:nbytes]
    tail = (nbytes - len(note)) // 4
    head = nbytes - len(note) - tail
    kept = encoded[:head], note, encoded[len(encoded) - tail :]
    return "".join(part.decode("utf-8", "ignore") for part in kept)  # a character that is cut in two is dropped


def printable(text: str) -> str:
    """A text of another rank without what could steer a terminal: control characters come out escaped."""
    return text.translate(_ESCAPED)


def summarize(exc: BaseException, message_nbytes: int = SUMMARY_NBYTES) -> str:
    """Type and message, also of an exception whose own `__str__` raises; the middle of a long message is cut out.

    Bounded, because it travels: a value above 8 MiB closes the process's connection to a TCPStore.
    """
    name = shorten(type(exc).__name__, 256)
    try:
        return f"{name}: {shorten(str(exc), message_nbytes)}"
    except Exception:
        return f"{name} (its message cannot be read)"


class RankFailedError(GatherError):
    """An object-level failure of one or more ranks, raised alike on every rank.

    On a failing rank the original exception is `__cause__`; the others read its traceback in `failures`.
    """

    what = "failed"

    def __init__(self, failures: Mapping[int, str]) -> None:
        self.failures: dict[int, str] = dict(failures)
        """Group rank -> "Type: message" and, where it was sent along, the traceback."""
        super().__init__(self.failures)

    def __str__(self) -> str:
        ranks_by_text: dict[str, list[int]] = {}
        for rank, text in sorted(self.failures.items()):
            ranks_by_text.setdefault(text, []).append(rank)
        return "\n".join(f"{format_ranks(ranks)} {self.what}: {text}" for text, ranks in ranks_by_text.items())


class RemoteEncodeError(RankFailedError):
    """Some ranks could not take part: bad arguments, or an object that is not encodable or above the limits."""

    what = "could not take part"


class RemoteCallError(RankFailedError):
    """The function given to `run` raised on some ranks."""

    what = "raised in run()"


class RemoteDecodeError(RankFailedError):
    """With `confirm=True`: some ranks could not decode what they got."""

    what = "could not decode"


class ReduceError(RankFailedError):
    """The metrics given to `reduce` do not fit together: names or kinds of values differ."""

    what = "handed in other metrics"


class SetupError(RankFailedError):
    """Some ranks could not construct their Gatherer, or disagree about it."""

    what = "could not set up"


class SlotOverflowError(GatherError):
    """With `overflow="error"`: some ranks sent more than a slot holds. Raised alike on every rank."""

    def __init__(self, nbytes: Mapping[int, int], slot_nbytes: int) -> None:
        self.nbytes: dict[int, int] = dict(nbytes)
        """Group rank -> bytes that its slot would have needed, header included."""
        self.slot_nbytes = slot_nbytes
        super().__init__(self.nbytes, slot_nbytes)

    def __str__(self) -> str:
        sizes = ", ".join(f"rank {rank} needs {nbytes}" for rank, nbytes in sorted(self.nbytes.items()))
        return (
            f"slots of {self.slot_nbytes} bytes are too small: {sizes}; "
            f'raise slot_nbytes to {max(self.nbytes.values())} or use overflow="second_round"'
        )


class ProtocolError(GatherError):
    """A slot that no correct rank writes: header, checksum, or lengths. The group is broken afterwards."""


class DesyncError(ProtocolError):
    """Ranks are at different operations; the message says which rank is where. The group is broken afterwards."""


class TransportError(GatherError):
    """Bytes could not be moved. The transport is unusable and the group broken afterwards."""


class TransportTimeoutError(TransportError, TimeoutError):
    """The deadline passed.

    `missing` are the ranks that gave no sign of life; `behind` those that are alive and late, because they never
    entered the operation or are in an earlier phase of it. Both in group ranks, both empty where nobody can tell.
    """

    def __init__(self, message: str, missing: Sequence[int] = (), behind: Sequence[int] = ()) -> None:
        self.missing = tuple(missing)
        self.behind = tuple(behind)
        super().__init__(message, self.missing, self.behind)

    def __str__(self) -> str:
        return str(self.args[0])


class PeerLostError(TransportError):
    """A rank's process or connection is gone; `ranks` names those known to be lost, in group ranks."""

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        self.ranks = tuple(ranks)
        super().__init__(message, self.ranks)

    def __str__(self) -> str:
        return str(self.args[0])


class AbortedError(TransportError):
    """Another rank gave up and told the others; `rank` is that group rank."""

    def __init__(self, message: str, rank: int) -> None:
        self.rank = rank
        super().__init__(message, rank)

    def __str__(self) -> str:
        return str(self.args[0])


class GroupBrokenError(TransportError):
    """An earlier failure broke the group; construct a new Gatherer on a group of live ranks. `__cause__` says why."""
