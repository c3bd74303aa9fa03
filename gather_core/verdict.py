"""The verdict of round 1: a pure function of the W slots, which comes out the same on every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gather_core.codec import Limits
from gather_core.errors import (
    DesyncError,
    LimitError,
    ProtocolError,
    RankFailedError,
    RemoteCallError,
    RemoteDecodeError,
    RemoteEncodeError,
    SlotOverflowError,
    format_ranks,
)
from gather_core.memory import UNBOUNDED
from gather_core.seal import SEAL_NBYTES, Seal
from gather_core.slot import (
    HEADER_NBYTES,
    Agreement,
    Failure,
    Header,
    Kind,
    check_lengths,
    is_data,
    parse_agreement,
    read_frames,
    read_header,
)

_ERRORS: Mapping[str, type[RankFailedError]] = {"call": RemoteCallError, "decode": RemoteDecodeError}
"""By the phase in which all that failed did so."""


@dataclass(frozen=True)
class Terms:
    """What round 0 agreed for all operations of one Gatherer."""

    group_id: int
    world_size: int
    slot_nbytes: int
    limits: Limits
    round_1_nbytes: int
    """The most of a slot that round 1 carries, header included; at least `slot_nbytes`."""
    overflow_is_error: bool
    covered_below_nbytes: int = UNBOUNDED
    """The checksum of smaller payloads covers their frames too."""
    seal: Seal | None = None
    """Every payload ends with one."""

    @property
    def seal_nbytes(self) -> int:
        """Bytes of every payload that are its seal."""
        return SEAL_NBYTES if self.seal is not None else 0


@dataclass(slots=True)
class Verdict:
    """What is to be done with a round in which no rank failed."""

    headers: list[Header]
    largest_nbytes: int
    """The slot that the largest payload would need, in bytes, header included."""
    nbytes_in_round_2: list[int] | None
    """Per rank, the payload bytes that round 1 did not carry; None where it carried everything."""


def judge(slots: Sequence[memoryview], expected: bytes, terms: Terms) -> Verdict:
    """Judges a round.

    Args:
        slots: One view per group rank, in order.
        expected: The agreement block that a healthy slot of this operation carries.
        terms: What round 0 agreed.

    Raises:
        DesyncError: A rank is at another operation, or its slot belongs to another group or place.
        RankFailedError: Some ranks sent an ERROR slot; a subclass.
        SlotOverflowError: Some payloads are larger than the slot, and that is an error here.
        ProtocolError: A slot that no correct rank writes.
    """
    headers = []
    healthy = is_data(expected)  # where every rank failed alike, no slot differs from ours
    for rank, slot in enumerate(slots):
        try:
            header = read_header(slot)
        except ProtocolError as exc:
            raise ProtocolError(f"slot of rank {rank}: {exc}") from None
        healthy = healthy and header.agreement == expected and header.rank == rank
        headers.append(header)
    if terms.seal is not None:
        for rank, header in enumerate(headers):
            _check_seal(rank, slots[rank], header, terms.seal)
    if not healthy:
        _raise_differences(slots, headers, parse_agreement(expected), terms)
    sizes = [_checked_nbytes(rank, header, terms.limits) for rank, header in enumerate(headers)]
    largest_nbytes = HEADER_NBYTES + max(sizes)
    if largest_nbytes <= terms.slot_nbytes:
        return Verdict(headers, largest_nbytes, None)
    return Verdict(headers, largest_nbytes, _round_2(sizes, largest_nbytes, terms))


def _check_seal(rank: int, slot: memoryview, header: Header, seal: Seal) -> None:
    """Checks what round 1 carried whole; what comes in round 2 is checked when it is there."""
    end = HEADER_NBYTES + header.total_nbytes
    if end <= len(slot):
        try:
            seal.open(header.pack(), slot[HEADER_NBYTES:end])
        except ProtocolError as exc:
            raise ProtocolError(f"slot of rank {rank}: {exc}") from None


def _raise_differences(
    slots: Sequence[memoryview], headers: Sequence[Header], expected: Agreement, terms: Terms
) -> None:
    """Finds what is wrong in a round that is not healthy; always raises."""
    agreements = [_check_place(rank, header, expected) for rank, header in enumerate(headers)]
    _check_operations(agreements)
    failures = {
        rank: _read_failure(rank, slots[rank], headers[rank], terms)
        for rank, agreement in enumerate(agreements)
        if agreement.kind == Kind.ERROR
    }
    if not failures:
        raise ProtocolError("the slots differ in nothing that can differ")
    texts = {rank: _describe(failure) for rank, failure in failures.items()}
    phases = {failure.phase for failure in failures.values()}
    raise _ERRORS.get(phases.pop() if len(phases) == 1 else "", RemoteEncodeError)(texts)


def _check_place(rank: int, header: Header, expected: Agreement) -> Agreement:
    """Checks that a slot belongs to this group, operation number and rank."""
    try:
        found = parse_agreement(header.agreement)
    except ProtocolError as exc:
        raise ProtocolError(f"slot of rank {rank}: {exc}") from None
    if found.group_id != expected.group_id or found.world_size != expected.world_size:
        raise DesyncError(f"the slot of rank {rank} belongs to another Gatherer or an earlier run")
    if found.flags != expected.flags:
        raise ProtocolError(f"the slot of rank {rank} is {'' if found.flags else 'not '}sealed")
    if found.seq != expected.seq:
        raise DesyncError(f"rank {rank} is at operation #{found.seq}, this rank at #{expected.seq}")
    if header.rank != rank:
        raise DesyncError(f"the slot of rank {header.rank} came in the place of rank {rank}")
    return found


def _check_operations(agreements: Sequence[Agreement]) -> None:
    """Compares the operations of the DATA slots.

    An ERROR slot has none of its own: what failed may have been the very arguments that name it.
    """
    ranks_by_op: dict[int, list[int]] = {}
    for rank, agreement in enumerate(agreements):
        if agreement.kind == Kind.DATA:
            ranks_by_op.setdefault(agreement.op, []).append(rank)
    if len(ranks_by_op) > 1:
        sides = " and ".join(format_ranks(ranks) for ranks in ranks_by_op.values())
        raise DesyncError(f"at #{agreements[0].seq}, {sides} differ in the operation, or in its dst, src or tag")


def _read_failure(rank: int, slot: memoryview, header: Header, terms: Terms) -> Failure:
    if header.total_nbytes > min(terms.slot_nbytes, len(slot)) - HEADER_NBYTES:
        raise ProtocolError(f"slot of rank {rank}: an ERROR that is longer than its slot")
    limits = Limits()  # the slot bounds it already, and an error must get through the tightest limits of objects
    check_lengths(header, limits)
    end = HEADER_NBYTES + header.total_nbytes - terms.seal_nbytes
    payload = slot[HEADER_NBYTES:end]
    return Failure.from_frames(read_frames(payload, header, limits, frames_checked=True))


def _describe(failure: Failure) -> str:
    return f"{failure.summary}\n{failure.traceback}".rstrip() if failure.traceback else failure.summary


def _checked_nbytes(rank: int, header: Header, limits: Limits) -> int:
    try:
        check_lengths(header, limits)
    except (ProtocolError, LimitError) as exc:
        raise ProtocolError(f"slot of rank {rank}: {exc}") from exc
    return header.total_nbytes


def _round_2(sizes: Sequence[int], largest_nbytes: int, terms: Terms) -> list[int] | None:
    """What round 1 did not carry, where something is larger than the slot."""
    if terms.overflow_is_error:
        needed = {rank: HEADER_NBYTES + size for rank, size in enumerate(sizes)}
        too_large = {rank: nbytes for rank, nbytes in needed.items() if nbytes > terms.slot_nbytes}
        raise SlotOverflowError(too_large, terms.slot_nbytes)
    if largest_nbytes <= terms.round_1_nbytes:
        return None
    room = terms.round_1_nbytes - HEADER_NBYTES
    return [size if size > room else 0 for size in sizes]
