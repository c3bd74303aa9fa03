"""What the ranks of one MPI communicator share: a duplicate of it, a store, a bell, and channels to use again."""

import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gather_core.background import run_bounded
from gather_core.bell import bell_of
from gather_core.deadline import Deadline
from gather_core.errors import SettingsError, SetupError, TransportError, shorten, summarize
from gather_core.local_store import ScopedStore
from gather_core.process_group import is_initialized
from gather_core.process_id import this_pid
from gather_core.transport import GroupContext
from gather_transports.mpi_channel import Channel
from gather_transports.mpi_store import host_identity, host_store, join_store
from gather_transports.mpi_waits import give_up, wait

if TYPE_CHECKING:
    from mpi4py import MPI

_TEXT_NBYTES = 512
_MAX_IDLE = 20
"""Channels that are offered for another use; their list has to fit in a text."""
NOT_INSTALLED = "mpi4py is not installed: pip install 'gather-core[mpi]', or mpi4py for the MPI of your cluster"


def is_installed() -> bool:
    """Whether there is mpi4py; does not import it, which would initialise MPI."""
    return importlib.util.find_spec("mpi4py") is not None


def _check_against_torch(world_size: int) -> None:
    """Refuses to gather from fewer ranks than the job has: torchrun has started it, and not mpiexec.

    Raises:
        SettingsError: torch.distributed has more ranks than MPI.
    """
    if is_initialized() and (ranks := sys.modules["torch.distributed"].get_world_size()) > world_size:
        raise SettingsError(
            f"MPI knows {world_size} of the {ranks} ranks of torch.distributed: start the job with mpiexec, use "
            "another transport, or say which communicator is meant, as in group=MPI.COMM_SELF"
        )


def communicator_of(group: object) -> "MPI.Intracomm":
    """Returns the communicator that is meant; None is COMM_WORLD.

    Raises:
        SettingsError: There is no MPI that can be used.
        ValueError: This rank is not in `group`.
        TypeError: `group` is something else.
    """
    if not is_installed():
        raise SettingsError(NOT_INSTALLED)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as exc:
        raise SettingsError(f"mpi4py finds no MPI library: {summarize(exc)}") from exc
    if not MPI.Is_initialized() or MPI.Is_finalized():
        raise SettingsError("MPI is not initialised, or has been finalised")
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise SettingsError(
            "MPI was initialised without MPI_THREAD_MULTIPLE, which mpi4py asks for by default: do not set "
            "mpi4py.rc.thread_level, or use an MPI that supports it"
        )
    if group is None:
        _check_against_torch(MPI.COMM_WORLD.size)
        return MPI.COMM_WORLD
    if isinstance(group, MPI.Comm) and group == MPI.COMM_NULL:
        raise ValueError("this rank is not in the communicator: only its members take part")
    if not isinstance(group, MPI.Intracomm):
        raise TypeError(f"group must be an mpi4py intracommunicator or None, not {type(group).__name__}")
    return group


def group_of(comm: "MPI.Intracomm", timeout_s: float) -> "MpiGroup":
    """(all ranks) Returns what the ranks of a communicator share; made on first use, kept as long as the communicator.

    Raises:
        SetupError: Not all ranks came in time, or one cannot reach the store. The communicator cannot be used again.
    """
    with _making:
        key = _keyval()
        found: Any = comm.Get_attr(key)
        if found is None:
            found = MpiGroup(comm)
            comm.Set_attr(key, found)
            found.connect(comm, Deadline(timeout_s))
        group: MpiGroup = found
    if group.broken:
        raise SetupError({comm.rank: f"an earlier construction on this communicator failed: {group.broken}"})
    return group


_making = threading.Lock()
_keyvals: list[int] = []


def _keyval() -> int:
    """Under which communicators hold their groups: handles are numbers that MPI uses again, attributes are not."""
    from mpi4py import MPI

    if not _keyvals:
        _keyvals.append(MPI.Comm.Create_keyval())
    return _keyvals[0]


class MpiGroup:
    """One rank's end of it."""

    def __init__(self, comm: "MPI.Intracomm") -> None:
        self.rank, self.world_size = comm.rank, comm.size
        self.broken = "it was interrupted"  # unless it gets to the end
        self._ranks = _global_ranks(comm)
        self._pid = this_pid()
        self._store: Any = None
        self._name = ""
        self._common: Channel | None = None
        self._num_channels = 0
        self._idle: list[Channel] = []
        self._spins = False

    def connect(self, comm: "MPI.Intracomm", deadline: Deadline) -> None:
        """(all ranks) Duplicates the communicator and connects all ranks to one store.

        Raises:
            SetupError: See `group_of`.
        """
        try:
            duplicate, request = comm.Idup()
            try:
                wait([request], deadline)
            except BaseException as exc:
                give_up((request, duplicate), exc)
            self._common = self._new_channel(duplicate)
            self._connect_store(deadline)
        except TransportError as exc:
            self.broken = f"not all ranks of the communicator came to the first Gatherer on it: {exc}"
            raise SetupError({self.rank: self.broken}) from exc
        self.broken = ""

    def _connect_store(self, deadline: Deadline) -> None:
        hosts = self._exchange(host_identity(), deadline, _nothing)
        self._spins = hosts.count(hosts[self.rank]) <= (os.cpu_count() or 1)
        failure = address = ""
        try:
            if self.rank == 0:
                self._store, address = host_store(one_host=len(set(hosts)) == 1)
        except (OSError, RuntimeError) as exc:
            failure = f"cannot host the ranks' store: {summarize(exc)}"
        address = self._exchange(address, deadline, _nothing)[0]
        try:
            if self.rank != 0 and address:
                self._store = run_bounded(lambda: join_store(address, deadline.remaining_s()), deadline.remaining_s())
        except (OSError, RuntimeError) as exc:
            failure = f"cannot reach the ranks' store at {address}: {summarize(exc)}"
        failures = {rank: text for rank, text in enumerate(self._exchange(failure, deadline, _nothing)) if text}
        if failures:
            self.broken = str(SetupError(failures))
            raise SetupError(failures)
        self._name = f"mpi {address}"

    def context(self) -> GroupContext:
        """This rank's place.

        Raises:
            ClosedError: This process was forked from the one that joined.
        """
        bell = bell_of(self, self._store, self._ranks[self.rank])
        return GroupContext(
            rank=self.rank,
            world_size=self.world_size,
            store=ScopedStore("gather_core", bell.store),
            bell=bell,
            ranks=self._ranks,
            name=self._name,
            process_group=self,
        )

    def take_channel(self, deadline: Deadline, check_interrupt: Callable[[], None]) -> Channel:
        """(all ranks, at about the same time) Returns a channel that no other Gatherer uses.

        Raises:
            TransportError: A rank did not come; no further channel can be taken.
        """
        idle = sorted([channel.index, channel.num_calls] for channel in self._idle)[:_MAX_IDLE]
        offers = self._exchange(json.dumps(idle), deadline, check_interrupt)
        common = [pair for pair in idle if all(pair in json.loads(offer) for offer in offers)]
        if common:
            index, _ = min(common)
            (channel,) = (channel for channel in self._idle if channel.index == index)
            self._idle.remove(channel)
            return channel
        duplicates: list[MPI.Intracomm] = []

        def start() -> "list[MPI.Request]":
            duplicate, request = self._live().comm.Idup()
            duplicates.append(duplicate)
            return [request]

        self._live().perform(start, duplicates, deadline, check_interrupt)
        return self._new_channel(duplicates[0])

    def give_back(self, channel: Channel) -> None:
        """Takes a channel of a closed Gatherer; it is used again once all ranks have given it back. Any thread."""
        if channel.is_clean and self._pid == this_pid():
            self._idle.append(channel)

    def _new_channel(self, comm: "MPI.Intracomm") -> Channel:
        from mpi4py import MPI

        comm.Set_errhandler(MPI.ERRORS_RETURN)
        self._num_channels += 1
        return Channel(comm, self._num_channels, spins=self._spins)

    def _live(self) -> Channel:
        if self._common is None:
            raise TransportError("the ranks are not connected")
        return self._common

    def _exchange(self, text: str, deadline: Deadline, check_interrupt: Callable[[], None]) -> list[str]:
        """(all ranks) Returns the texts of all ranks."""
        sent = bytearray(shorten(text, _TEXT_NBYTES).encode().ljust(_TEXT_NBYTES, b"\0"))
        received = bytearray(_TEXT_NBYTES * self.world_size)
        channel = self._live()
        channel.perform(lambda: [channel.comm.Iallgather(sent, received)], (sent, received), deadline, check_interrupt)
        rows = (received[start : start + _TEXT_NBYTES] for start in range(0, len(received), _TEXT_NBYTES))
        return [row.rstrip(b"\0").decode() for row in rows]


def _nothing() -> None:
    """Nobody interrupts a rank that has not joined yet, but by a signal."""


def _global_ranks(comm: "MPI.Intracomm") -> tuple[int, ...]:
    """The ranks in COMM_WORLD; where the communicator has others too, its own."""
    from mpi4py import MPI

    own, world = comm.Get_group(), MPI.COMM_WORLD.Get_group()
    try:
        ranks = own.Translate_ranks(None, world)
    finally:
        own.Free()
        world.Free()
    return tuple(range(comm.size)) if MPI.UNDEFINED in ranks else tuple(ranks)
