"""Transports that each break the contract in one way; what is to find them is in `FAULTS`.

All of them are the correct StoreTransport but for that one thing.
"""

import ctypes
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from time import sleep
from typing import Any, ClassVar

from gather_core import Capabilities, GroupContext, PeerLostError
from gather_core.deadline import Deadline
from gather_core.local_store import LocalStore
from gather_core.memory import ALIGNMENT, aligned_buffer
from gather_core.transport import Store
from store_transport import StoreTransport

BLOCKS_FOR_S = 3.0
"""How long what must not block does, in seconds: longer than the tests' `grace_s`."""
_HOUR_S = 3600.0


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def room_behind(view: memoryview) -> int:
    """How many bytes of the memory that a view is part of lie behind it."""
    block: Any = view.obj
    return int(block.ctypes.data) + int(block.nbytes) - address(view) - len(view)


def copied(view: memoryview, offset: int = 0) -> memoryview:
    """A writable copy, starting `offset` bytes after a multiple of 64."""
    copy = aligned_buffer(len(view) + offset)[offset:]
    copy[:] = view
    return copy


class ReversesTheRanks(StoreTransport):
    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        return super().all_gather_slots(nbytes, timeout_s=timeout_s)[::-1]


class ForgetsTheLastRank(StoreTransport):
    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        views = super().all_gather_slots(nbytes, timeout_s=timeout_s)
        return views[: max(len(views) - 1, 1)]


class RoundsSizesDown(StoreTransport):
    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        return super().all_gather_slots(nbytes & -ALIGNMENT, timeout_s=timeout_s)


class TakesSlotsForText(StoreTransport):
    """Which ends at a zero."""

    def _received(self, content: bytes) -> memoryview:
        return super()._received(content.rstrip(b"\0"))


class TruncatesLongSlots(StoreTransport):
    """Promises to carry more than a slot."""

    @property
    def round_1_nbytes(self) -> int:
        return 4 * self.slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        if nbytes > len(self._slot):
            self._slot = aligned_buffer(nbytes)
        return self._slot[:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        return super().all_gather_slots(min(nbytes, self.slot_nbytes), timeout_s=timeout_s)


class PromisesOtherSizesPerRank(StoreTransport):
    @property
    def round_1_nbytes(self) -> int:
        return self.slot_nbytes + ALIGNMENT * self.rank

    def slot(self, nbytes: int) -> memoryview:
        if nbytes > len(self._slot):
            self._slot = aligned_buffer(nbytes)
        return self._slot[:nbytes]


class LendsWritableViews(StoreTransport):
    def _received(self, content: bytes) -> memoryview:
        return copied(memoryview(content))


class LendsUnalignedViews(StoreTransport):
    def _received(self, content: bytes) -> memoryview:
        return copied(memoryview(content), offset=8).toreadonly()


class LendsAnUnalignedSlot(StoreTransport):
    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        super().open(context, slot_nbytes, timeout_s=timeout_s)
        self._slot = aligned_buffer(slot_nbytes + 8)[8:]


class LendsTooShortASlot(StoreTransport):
    def slot(self, nbytes: int) -> memoryview:
        return self._slot[: nbytes & -ALIGNMENT]


class NeedsRoomBesideTheSlot(StoreTransport):
    def slot(self, nbytes: int) -> memoryview:
        if nbytes > self.slot_nbytes - 8:
            raise MemoryError("no room for a length of 8 bytes")
        return super().slot(nbytes)


class ReusesOneBuffer(StoreTransport):
    """A rank that goes on overwrites what others still read."""

    _everyone: ClassVar[dict[tuple[str, int], "ReusesOneBuffer"]] = {}

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._everyone[context.scope, context.rank] = self
        super().open(context, slot_nbytes, timeout_s=timeout_s)

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        scope = self._context.scope
        lengths = [len(view) for view in super().all_gather_slots(nbytes, timeout_s=timeout_s)]
        slots = [self._everyone[scope, rank]._slot for rank in range(len(lengths))]
        return [slot[:length].toreadonly() for slot, length in zip(slots, lengths, strict=True)]


class GivesWhatItUsesAgain(StoreTransport):
    """Of the memory that it gives, it has two pieces per rank."""

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._given = [[aligned_buffer(slot_nbytes) for _ in context.ranks] for _ in range(2)]
        super().open(context, slot_nbytes, timeout_s=timeout_s)

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        views = super().all_gather_slots(nbytes, timeout_s=timeout_s)
        if not self.may_give:
            return views
        self._given.reverse()
        given = [memory[: len(view)] for memory, view in zip(self._given[0], views, strict=True)]
        for memory, view in zip(given, views, strict=True):
            memory[:] = view
        return given


class WritesBeyondInto(StoreTransport):
    def all_gather_exact(
        self, parts: Any, nbytes_per_rank: Any, *, into: Sequence[memoryview], timeout_s: float
    ) -> Sequence[memoryview]:
        super().all_gather_exact(parts, nbytes_per_rank, into=into, timeout_s=timeout_s)
        for view in filter(None, into):
            ctypes.memset(address(view) + len(view), 0, min(8, room_behind(view)))
        return into


class ClearsThePartsItHasSent(StoreTransport):
    def all_gather_exact(self, parts: Sequence[memoryview], *args: Any, **options: Any) -> Sequence[memoryview]:
        payloads = super().all_gather_exact(parts, *args, **options)
        for part in parts:
            if not part.readonly:
                part[:] = bytes(len(part))
        return payloads


class ReturnsWritableMemoryOfItsOwn(StoreTransport):
    def all_to_all_exact(self, *args: Any, **options: Any) -> Sequence[memoryview]:
        return [copied(view) for view in super().all_to_all_exact(*args, **options)]


class StopsAtAnEmptyPart(StoreTransport):
    def all_gather_exact(self, parts: Sequence[memoryview], *args: Any, **options: Any) -> Sequence[memoryview]:
        lengths = list(map(len, parts))
        return super().all_gather_exact(parts[: lengths.index(0) if 0 in lengths else None], *args, **options)


class RoutesToTheNeighbour(StoreTransport):
    def all_to_all_exact(self, parts_per_peer: Sequence[Any], *args: Any, **options: Any) -> Sequence[memoryview]:
        return super().all_to_all_exact([*parts_per_peer[1:], parts_per_peer[0]], *args, **options)


class RepeatsARoundAfterRoutedOnes(StoreTransport):
    _repeats = False
    _last: Sequence[memoryview] = ()

    def all_to_all_exact(self, *args: Any, **options: Any) -> Sequence[memoryview]:
        payloads = super().all_to_all_exact(*args, **options)
        self._repeats = True
        return payloads

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        views = super().all_gather_slots(nbytes, timeout_s=timeout_s)
        if not self._repeats:
            self._last = views
        self._repeats = False
        return self._last


class MixesTheTransportsOfAGroup(StoreTransport):
    """They share keys, whatever their scope."""

    _stores: ClassVar[dict[str, Store]] = {}

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        super().open(context, slot_nbytes, timeout_s=timeout_s)
        self._context = replace(context, store=self._stores.setdefault(context.name, LocalStore()))


class IgnoresTheDeadline(StoreTransport):
    def _wait_for(self, keys: list[str], deadline: Deadline) -> None:
        super()._wait_for(keys, Deadline(_HOUR_S))


class GivesUpAfterASlice(StoreTransport):
    def _wait_for(self, keys: list[str], deadline: Deadline) -> None:
        super()._wait_for(keys, Deadline(0.25 if self._round else deadline.timeout_s))


class RaisesAnErrorOfItsStore(StoreTransport):
    def _wait_for(self, keys: list[str], deadline: Deadline) -> None:
        try:
            super()._wait_for(keys, deadline)
        except Exception as exc:
            raise RuntimeError("the store gave up") from exc


class NeverLooksForInterrupts(StoreTransport):
    def _wait_for(self, keys: list[str], deadline: Deadline) -> None:
        check, self.check_interrupt = self.check_interrupt, lambda: None
        try:
            super()._wait_for(keys, deadline)
        finally:
            self.check_interrupt = check


class RemembersAnEarlierInterrupt(StoreTransport):
    """The one that was set when it opened."""

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._check_while_opening = self.check_interrupt
        super().open(context, slot_nbytes, timeout_s=timeout_s)

    def _wait_for(self, keys: list[str], deadline: Deadline) -> None:
        self.check_interrupt = self._check_while_opening
        super()._wait_for(keys, deadline)


class SwallowsInterrupts(StoreTransport):
    def _wait_for(self, keys: list[str], deadline: Deadline) -> None:
        try:
            super()._wait_for(keys, deadline)
        except BaseException as exc:
            if isinstance(exc, Exception):
                raise
            raise PeerLostError("something happened") from exc


class ReturnsStaleBytesAfterAFailure(StoreTransport):
    _last: Sequence[memoryview] = ()

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if not self._ended:
            self._last = super().all_gather_slots(nbytes, timeout_s=timeout_s)
        return self._last


class GoesOnAfterAFailure(StoreTransport):
    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if self._ended == "an earlier call failed":
            self._ended = ""
        return super().all_gather_slots(nbytes, timeout_s=timeout_s)


class BlocksInAbort(StoreTransport):
    def abort(self, reason: str) -> None:
        super().abort(reason)
        threading.Event().wait(BLOCKS_FOR_S)


class RaisesInASecondAbort(StoreTransport):
    def abort(self, reason: str) -> None:
        if self._ended:
            raise RuntimeError("aborted already")
        super().abort(reason)


class TellsNobodyOfAnAbort(StoreTransport):
    def abort(self, reason: str) -> None:
        self._ended = f"aborted: {reason}"


class ClearsItsFieldsInAbort(StoreTransport):
    """While another thread still uses them."""

    def abort(self, reason: str) -> None:
        vars(self)["check_interrupt"] = None
        sleep(0.05)
        super().abort(reason)


class ClosesOnlyOnce(StoreTransport):
    def close(self) -> None:
        if self._ended == "it is closed":
            raise ValueError("closed already")
        super().close()


class ClosesOnlyWhatIsOpen(StoreTransport):
    def close(self) -> None:
        self._context.store.check(["anything"])
        super().close()


class TakesBackWhatItHasSent(StoreTransport):
    def close(self) -> None:
        if not self._ended:
            self._context.store.delete_key(f"{self._round - 1}/{self.rank}")
        super().close()


class LeavesAThread(StoreTransport):
    closing: ClassVar[threading.Event] = threading.Event()
    """Ends what this test itself must not leave."""

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        super().open(context, slot_nbytes, timeout_s=timeout_s)
        threading.Thread(target=self.closing.wait, daemon=True).start()


class LeavesADescriptor(StoreTransport):
    left: ClassVar[list[int]] = []

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        super().open(context, slot_nbytes, timeout_s=timeout_s)
        self.left.append(os.open(os.devnull, os.O_RDONLY))


class LeavesAFile(StoreTransport):
    left: ClassVar[list[str]] = []

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        super().open(context, slot_nbytes, timeout_s=timeout_s)
        descriptor, path = tempfile.mkstemp()
        os.close(descriptor)
        self.left.append(path)


class OpensForEver(StoreTransport):
    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        super().open(context, slot_nbytes, timeout_s=_HOUR_S)


class KeepsAKeyPerRound(StoreTransport):
    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        views = super().all_gather_slots(nbytes, timeout_s=timeout_s)
        self._context.store.set(f"was here/{self._round}/{self.rank}", "")
        return views


class IsNamedLikeAClass(StoreTransport):
    name = "Store Transport"


class HasCapabilitiesOfItsOwnKind(StoreTransport):
    capabilities: ClassVar[Any] = type("Capabilities", (), vars(Capabilities(locality="any")))()


class LeavesAnOptionOutOfItsSpec(StoreTransport):
    def __init__(self, *, pause_s: float = 0.001) -> None:
        self._pause_s = pause_s

    @property
    def spec(self) -> str:
        return self.name if self._pause_s != 0.001 else f"{self.name}:pause_s=0.002"


class IsNeverLikeAnother(StoreTransport):
    def fingerprint(self) -> str:
        return f"{self.spec} at {id(self)}"


class SaysFalseWhereItIsAvailable(StoreTransport):
    @classmethod
    def unavailable(cls, context: GroupContext | None) -> Any:
        return False


class OpensAFileToSeeWhetherItIsAvailable(StoreTransport):
    left: ClassVar[list[int]] = []

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        cls.left.append(os.open(os.devnull, os.O_RDONLY))
        return None


def clean_up() -> None:
    """Ends and removes what the leaking ones have left."""
    LeavesAThread.closing.set()
    for descriptor in LeavesADescriptor.left + OpensAFileToSeeWhetherItIsAvailable.left:
        os.close(descriptor)
    for path in LeavesAFile.left:
        os.unlink(path)
