"""Memory that all ranks of one host share: every rank writes into its own, and reads that of the others where it lies.

An exchange is: the payload into this rank's slot, a token to every peer, and a token from every peer. Two slots per
rank are used in turn, so nobody has to say that it has read: whoever gives its next token has come to its next
exchange, and so has done with the one before, and whoever has all tokens of an exchange may write into the slot that
was used in the one before that. docs/shm.md says more.
"""

import os
import threading
import weakref
from collections.abc import Sequence
from ctypes import c_void_p, sizeof
from typing import Any

from gather_core.chunks import copy_pieces
from gather_core.errors import SettingsError, TransportError, format_ranks
from gather_core.transport import Capabilities, GroupContext, PeerState, Transport
from gather_transports.c_library import c_library_name
from gather_transports.semaphores import missing_function, post, try_wait
from gather_transports.shm_control import Leave
from gather_transports.shm_group import ShmGroup

_KEEP_NBYTES = 32 << 20
_NOT_OPEN = "the transport is not open"
_CLOSED = "the transport is closed"
_FAILED = "an earlier exchange failed"
_LAYOUT = 4
"""Raised with any change of what lies where in shared memory."""


class ShmTransport(Transport):
    """Shared memory and semaphores between the processes of one host: docs/shm.md.

    Args:
        folder: Where the memory comes from: a folder of a tmpfs such as /dev/shm, whose size then bounds it, or "":
            the host's (or the control group's) memory.
        lend: Whether ranks may have payloads of 1 MiB and more as results where their sender has written them; else
            every rank copies them.
        keep_nbytes: What a rank keeps for payloads beyond its slot once smaller ones come, in bytes, twice: for one
            that peers read, and for the next.
    """

    name = "shm"
    capabilities = Capabilities(
        locality="host", elastic_slots=True, death_detection="fast", crosses_wire=False, lasting_views=True
    )

    def __init__(self, *, folder: str = "", keep_nbytes: int = _KEEP_NBYTES, lend: bool = True) -> None:
        if keep_nbytes < 0:
            raise SettingsError(f"keep_nbytes must be at least 0, not {keep_nbytes}")
        self._folder = folder
        self._keep_nbytes = keep_nbytes
        self._lends = lend
        self._group: ShmGroup | None = None
        self._refused = _NOT_OPEN
        """Why a verb cannot be called; empty where it can."""
        self._leaving = threading.RLock()
        self._rank = self._slot_nbytes = self._turn = 0
        self._is_large = False

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        for needed in ("memfd_create", "posix_fallocate", "sched_yield"):
            if not hasattr(os, needed):
                return f"this system has no {needed}"
        if function := missing_function():
            return f"this system's C library has no {function}"
        if not os.path.exists("/proc/self/fd"):
            return "there is no /proc, through which processes find each other's memory"
        return None if context is None else _why_not_one_host(context)

    @property
    def spec(self) -> str:
        from gather_core.spec import format_spec

        options: dict[str, tuple[object, object]] = {
            "folder": (self._folder, ""),
            "keep_nbytes": (self._keep_nbytes, _KEEP_NBYTES),
            "lend": (self._lends, True),
        }
        return format_spec(self.name, {key: value for key, (value, default) in options.items() if value != default})

    def fingerprint(self) -> str:
        return f"{self.spec}, layout {_LAYOUT}, {c_library_name()}, {8 * sizeof(c_void_p)} bits"

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if reason := self.unavailable(context):
            raise TransportError(f"shared memory cannot be used: {reason}")
        self._rank = context.rank
        self._slot_nbytes = slot_nbytes
        _open_here.add(self)
        try:
            self._group = ShmGroup(
                context,
                slot_nbytes,
                self._folder,
                self._keep_nbytes,
                self._lends,
                timeout_s,
                lambda: self.check_interrupt(),
            )
        except TransportError:  # a timeout of ours is an OSError too
            raise
        except OSError as exc:
            where = f" in {self._folder}" if self._folder else ""
            raise TransportError(f"no shared memory{where}: {exc.strerror or exc}") from exc
        self._refused = ""

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        group = self._group
        if self._refused or group is None:
            raise TransportError(self._refused or _CLOSED)
        if nbytes > self._slot_nbytes:
            view = group.own.large_slot(nbytes, may_lend=self.may_give)
            self._is_large = True
            return view
        self._is_large = False
        if group.own.is_oversized:
            group.own.rest()
        return group.own.slots[self._turn]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        group = self._group  # also keeps the memory mapped where another thread closes
        if self._refused or group is None:
            raise TransportError(self._refused or _CLOSED)
        self._refused = _FAILED  # unless it gets to the end
        turn = self._turn
        extents = group.extents[turn]
        if group.owed:
            group.end_loans()
        if self._is_large:
            extents[self._rank] = group.own.hand_over(nbytes, may_lend=self.may_give).pack()
        elif extents[self._rank] or group.own.is_read:
            extents[self._rank] = 0
            group.own.hand_over_slot()
        for token in group.given:
            post(token)
        for token in group.wait.tokens:
            if try_wait(token):
                group.wait.wait_from(token, timeout_s, self.check_interrupt)
                break
        views = group.views[turn] if extents == group.no_extents else group.large_views(turn)
        self._turn = 1 - turn
        self._is_large = False
        self._refused = ""
        return views

    def all_gather_exact(
        self,
        parts: Sequence[memoryview],
        nbytes_per_rank: Sequence[int],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        own_nbytes = nbytes_per_rank[self._rank]
        copy_pieces(self.slot(own_nbytes), parts, 0, own_nbytes)
        views = self.all_gather_slots(own_nbytes, timeout_s=timeout_s)
        return [view[:nbytes] for view, nbytes in zip(views, nbytes_per_rank, strict=True)]

    def peers(self) -> list[PeerState]:
        group = self._group
        if group is None:
            return []
        states = [PeerState.ALIVE] * group.world_size
        for rank, is_dead in group.are_dead().items():
            if is_dead:
                states[rank] = PeerState.DEAD
        return states

    def abort(self, reason: str) -> None:
        self._leave(Leave.ABORTED, reason)

    def close(self) -> None:
        self._leave(Leave.CLOSED, _CLOSED)
        group, self._group = self._group, None
        self._refused = _CLOSED
        if group is not None:
            group.own.give_up()
            group.close()

    def _leave(self, kind: Leave, text: str) -> None:
        with self._leaving:
            group = self._group
            if group is not None:
                group.leave(kind, text, within=self._turn if self._refused == _FAILED else None)

    def _disown(self) -> None:
        """In a forked child, which has neither descriptors nor memory of it any more."""
        self._group = None
        self._leaving = threading.RLock()  # a thread of the parent's may have held it
        self._refused = "the transport belongs to the parent process"


def _why_not_one_host(context: GroupContext) -> str | None:
    if len(set(context.hosts)) <= 1:
        return None
    others = [rank for rank, host in enumerate(context.hosts) if host != context.hosts[context.rank]]
    return f"not on the host of rank {context.rank}: {format_ranks(others)}"


_open_here: "weakref.WeakSet[ShmTransport]" = weakref.WeakSet()


def _disown_all(*_: Any) -> None:
    for transport in list(_open_here):
        transport._disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
