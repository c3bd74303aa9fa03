"""What is fuzzed: the decoders of all DATA codecs, and the parsers of slots and of the seed's wire."""

import inspect
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz.allowed_types import foreign_type
from fuzz.byte_mutations import Case
from fuzz.formats import Format, format_of
from fuzz.seeds import seed_objects
from fuzz.slot_formats import PartsFormat, RoundFormat
from gather_core import slot as slots
from gather_core import slot_reader, verdict
from gather_core.codec import Codec, DecodeOptions, Limits, Trust
from gather_core.compat import seed_wire
from gather_core.errors import (
    DecodeError,
    EncodeError,
    LimitError,
    ProtocolError,
    RankFailedError,
    RemoteEncodeError,
    SlotOverflowError,
)
from gather_core.exactness import difference
from gather_core.registry import codec_class, follows_another, get_codec, known_codecs
from gather_core.seal import SEAL_NBYTES, Seal
from gather_core.testing.codec_frames import Landed, as_views


class Target(ABC):
    """One decoder.

    Args:
        name: What reports and replays call it.
        places: The files, and folders of files, whose branches count.
    """

    expected: tuple[type[Exception], ...]
    """What damaged input may raise."""
    format: Format | None = None

    def __init__(self, name: str, places: Sequence[Path]) -> None:
        self.name = name
        self.places = places

    @abstractmethod
    def seeds(self) -> list[Case]:
        """Inputs that are not damaged."""

    @abstractmethod
    def prepare(self, case: Case) -> Any:
        """What `receive` takes; not part of what is measured."""

    @abstractmethod
    def receive(self, prepared: Any) -> object:
        """Runs the decoder."""

    @abstractmethod
    def problem(self, case: Case, received: Any) -> str | None:
        """What is wrong with what came out; None where nothing is."""


class CodecTarget(Target):
    """The decoder of one codec: it builds allowed types only, and what it builds makes the round trip."""

    expected = (DecodeError, LimitError)

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.spec, [Path(inspect.getfile(type(codec))).parent])
        self.codec = codec
        self.format = format_of(codec.spec)

    def seeds(self) -> list[Case]:
        cases = []
        for obj in seed_objects():
            with suppress(EncodeError):
                cases.append(tuple(map(bytes, as_views(self.codec.encode(obj)))))
        return cases

    def prepare(self, case: Case) -> Any:
        return Landed(case).views, _options(case)

    def receive(self, prepared: Any) -> object:
        return self.codec.decode(*prepared)

    def problem(self, case: Case, received: Any) -> str | None:
        if (foreign := foreign_type(received, self.name)) is not None:
            return f"a {foreign} was built"
        try:
            frames = as_views(self.codec.encode(received))
        except EncodeError:  # decoding may take what encoding refuses
            return None
        where = difference(self.codec.decode(Landed(frames).views), received)
        return f"the round trip of what was decoded changed it: {where}" if where else None


_LIMITS = Limits(payload_nbytes=1 << 18, frame_nbytes=1 << 18, num_frames=1000)
_TIGHT = {"depth": 3, "container_length": 7, "string_nbytes": 9, "payload_nbytes": 500, "expansion_ratio": 20}


def _options(case: Case) -> DecodeOptions:
    """Limits that keep memory small; for one case in eight so tight that some are above them."""
    draw = zlib.crc32(b"".join(case)) % 16
    if draw > 1:
        return DecodeOptions("current" if draw == 2 else "cpu", _LIMITS)
    known = {field.name for field in fields(Limits)}
    return DecodeOptions(limits=Limits(**{name: value for name, value in _TIGHT.items() if name in known}))


_TERMS_NBYTES = 3
_GROUP_ID, _SEQ, _OP = 5, 7, 11


_SEAL = Seal(bytes(32))


class RoundTarget(Target):
    """The slots of a round: headers, the verdict, and the frames of those that travelled in round 1."""

    expected = (ProtocolError, LimitError, RankFailedError, SlotOverflowError)
    format = RoundFormat()

    def __init__(self) -> None:
        super().__init__("slots", [Path(slots.__file__), Path(verdict.__file__), Path(slot_reader.__file__)])

    def seeds(self) -> list[Case]:
        texts = slots.Failure("encode", "ValueError: x", "trace").frames(960)
        called = slots.Failure("call", "ValueError: x", "").frames(960)
        good: list[list[bytes]] = [[b"head"], [b"", b"x" * 70, b"y"], [b"z" * 900], []]
        rounds = [[_slot(rank, frames, of=4) for rank, frames in enumerate(good)], [_slot(0, [b"x" * 64] * 30)]]
        rounds += [[_slot(0, [b"a"], of=2), _slot(1, failure, kind=2, of=2)] for failure in (texts, called)]
        rounds += [
            [_slot(0, texts, kind=2)],
            [_slot(0, [b"a"], op=1, of=2), _slot(1, [b"a"], of=2)],
            [_slot(0, [b"a"], seq=1)],
        ]
        sealed = [[_slot(rank, frames, of=4, seal=_SEAL) for rank, frames in enumerate(good)]]
        sealed += [[_slot(0, [b"a"], of=2, seal=_SEAL), _slot(1, texts, kind=2, of=2, seal=_SEAL)]]
        open_cases = [(bytes([how, 0, 0]), *of) for of in rounds for how in range(8)]
        return [*open_cases, *((bytes([how, 0, 0]), *of) for of in [*sealed, rounds[0]] for how in (8, 12))]

    def prepare(self, case: Case) -> Any:
        how = (case[0] if case else b"").ljust(_TERMS_NBYTES, b"\0")
        limits = Limits(payload_nbytes=1024, num_frames=20, frame_nbytes=512) if how[0] & 1 else Limits()
        num_slots = max(len(case) - 1, 1)
        covered = 0 if how[0] & 4 else 1 << 63
        seal = _SEAL if how[0] & 8 else None
        terms = verdict.Terms(_GROUP_ID, num_slots, 1024, limits, 1024, bool(how[0] & 2), covered, seal)
        expected = _expected(num_slots, how[1] & 1, slots.SEALED if seal else 0)
        return [memoryview(slot) for slot in case[1:]] or [memoryview(b"")], expected, terms

    def receive(self, prepared: Any) -> object:
        views, expected, terms = prepared
        read = slot_reader.SlotReader(terms).read(views, expected, range(len(views)))
        try:
            agreed = [slots.parse_agreement(slots.read_header(view).agreement) for view in views[:1]]
            judged = verdict.judge(views, expected, terms)
            frames_per_rank = [_frames_of(view, header, terms) for view, header in zip(views, judged.headers)]  # noqa: B905
        except self.expected as exc:
            if read is not None:
                raise AssertionError("read in one go, and refused step by step") from exc
            raise
        return [agreed, judged, frames_per_rank, read]

    def problem(self, case: Case, received: Any) -> str | None:
        _, judged, frames_per_rank, read = received
        if read is not None and [frames for _, frames in read[0]] != frames_per_rank:
            return "other frames were read in one go than step by step"
        for rank, (header, frames) in enumerate(zip(judged.headers, frames_per_rank, strict=True)):
            if header.rank != rank:
                return f"the slot of rank {header.rank} was taken for that of rank {rank}"
            sealed_nbytes = SEAL_NBYTES if slots.parse_agreement(header.agreement).flags else 0
            if frames is not None and slots.payload_nbytes(frames) + sealed_nbytes != header.total_nbytes:
                return f"{len(frames)} frames are not all of a payload of {header.total_nbytes} bytes"
        return None


def _frames_of(view: memoryview, header: slots.Header, terms: verdict.Terms) -> Any:
    """What the Gatherer does with a payload of round 1; texts are read from frames that have as many."""
    slots.check_lengths(header, terms.limits)
    payload = view[slots.HEADER_NBYTES :][: header.total_nbytes]
    if len(payload) < header.total_nbytes:
        return None  # it travels in round 2
    if terms.seal is not None:
        payload = payload[:-SEAL_NBYTES]
    is_checked = header.total_nbytes < terms.covered_below_nbytes
    frames = slots.read_frames(payload, header, terms.limits, frames_checked=is_checked)
    if len(frames) == 3:
        slots.Failure.from_frames(frames)
    return frames


def _expected(world_size: int, is_error: int, flags: int) -> bytes:
    return slots.pack_agreement(1 + is_error, _GROUP_ID, _SEQ, world_size, 0 if is_error else _OP, flags)


def _slot(
    rank: int,
    frames: Sequence[bytes],
    *,
    kind: int = 1,
    seq: int = _SEQ,
    op: int = _OP,
    of: int = 1,
    seal: Seal | None = None,
) -> bytes:
    payload = bytearray(slots.payload_nbytes(frames))
    slots.write_payload(memoryview(payload), frames)
    checksum = slots.checksum_parts([memoryview(payload)])
    flags = slots.SEALED if seal else 0
    agreement = slots.pack_agreement(kind, _GROUP_ID, seq, of, 0 if kind == 2 else op, flags)
    nbytes = len(payload) + (SEAL_NBYTES if seal else 0)
    header = slots.pack_header(nbytes, rank, len(frames), checksum, agreement)
    return header + payload + (seal.block(header, [memoryview(payload)]) if seal else b"")


class PartsTarget(Target):
    """The parts of the seed's wire, up to the pickles in them, which are not loaded."""

    expected = (ProtocolError, RemoteEncodeError)
    format = PartsFormat()

    def __init__(self) -> None:
        super().__init__("seed_wire", [Path(seed_wire.__file__)])

    def seeds(self) -> list[Case]:
        parts = [len(load).to_bytes(4, "big") + load for load in (b"N.", b"K\1.", b"(" + b"N" * 40 + b"t.")]
        padded = [part.ljust(50, b"\0") for part in parts]
        return [(struct.pack("<BBH", rank, 3, 50), parts[rank], b"".join(padded) + bytes(9)) for rank in range(3)]

    def prepare(self, case: Case) -> Any:
        how, own, buffer = (*case, b"", b"", b"")[:3]
        rank, num_parts, max_size = struct.unpack("<BBH", how[:4].ljust(4, b"\0"))
        num_parts, max_size = max(num_parts, 1), max(max_size, 5)
        place = seed_wire._Place(None, rank % num_parts, num_parts)
        return memoryview(buffer.ljust(num_parts * max_size, b"\0")), memoryview(own), place, max_size

    def receive(self, prepared: Any) -> object:
        with mock.patch.object(seed_wire, "_unpickle", lambda rank, payload: bytes(payload)):
            return seed_wire._decode(*prepared)

    def problem(self, case: Case, received: Any) -> str | None:
        buffer, _, place, max_size = self.prepare(case)
        parts = [buffer[at : at + max_size] for at in range(0, place.world_size * max_size, max_size)]
        whole = [bytes(part[4:]).rstrip(b"\0") for part in parts]
        is_right = [payload.rstrip(b"\0") for payload in received] == whole and all(received)
        return None if is_right else "the payloads are not what the parts hold"


def find_targets() -> dict[str, Target]:
    """By name: every known DATA codec, alone and behind each known wrapper, and the parsers of slots."""
    found: list[Target] = [CodecTarget(codec) for codec in _data_codecs()]
    return {target.name: target for target in (*found, RoundTarget(), PartsTarget())}


def _data_codecs() -> list[Codec]:
    classes = {known.name: codec_class(known.name) for known in known_codecs()}
    wrappers = [name for name, cls in classes.items() if follows_another(cls)]
    first = [get_codec(name) for name in classes if name not in wrappers]
    data = [codec for codec in first if codec.trust is Trust.DATA]
    wrapped = [get_codec(f"{codec.spec}+{wrapper}") for codec in data for wrapper in wrappers]
    return [*data, *(codec for codec in wrapped if codec.trust is Trust.DATA)]
