"""MPI through mpi4py, for jobs that mpiexec or srun started: no torch process group is needed.

A slot travels in a row of 1 KiB, by Iallgather, with the length of what is filled in front; what is longer follows, as
all ranks know then who sends how much: by Iallgatherv, or, where a rank sends more than 64 KiB, directly from each rank
to every other. So a small object takes one collective, whatever the size of the slot. Payloads of round 2 are received
where they stay; each rank copies its own there first, and sends it from there.

Every call is a nonblocking one that is tested for, so that deadlines, Ctrl-C and aborts are seen; MPI's blocking ones
are not faster. What was given up cannot be taken back: its communicator and memory are kept until the process ends.
"""

import struct
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Literal

from gather_core.chunks import copy_pieces, payload_views
from gather_core.deadline import Deadline
from gather_core.errors import ProtocolError, SettingsError, TransportError
from gather_core.memory import ALIGNMENT, UNBOUNDED, aligned_buffer
from gather_core.spec import format_spec
from gather_core.transport import DEFAULT_TIMEOUT_S, Capabilities, GroupContext, PeerState, Transport
from gather_transports.mpi_arrival import await_everyone
from gather_transports.mpi_channel import DATA_TAG, Channel
from gather_transports.mpi_group import NOT_INSTALLED, MpiGroup, communicator_of, group_of, is_installed

if TYPE_CHECKING:
    from mpi4py import MPI

Algorithm = Literal["auto", "allgatherv", "direct"]

_EXCHANGE = 2
"""Counts the ways in which ranks have exchanged rows: those of different ones would wait for each other."""
_ROW_NBYTES = 1024
"""Measured on 2 cores under MPICH 5.0, Iallgather of two ranks: 256 B 2.6 us, 1 KiB 3.2, 4 KiB 5.4, 16 KiB 60."""
_DIRECT_ABOVE_NBYTES = 64 << 10
"""Iallgatherv passes large payloads on in pieces, each of which waits until a rank calls MPI: 20 MB beside 8 bytes take
it seconds where ranks sleep between calls, and 20 ms directly."""
_CHUNK_NBYTES = 64 << 20
_LENGTH = struct.Struct("<Q")
_LARGE_COUNTS_SINCE = (4, 0)
"""MPI 4.0 has 64-bit counts and displacements; before, those of collectives have 32."""


class MpiTransport(Transport):
    """A communicator of its own under mpiexec or srun: docs/mpi.md.

    Args:
        algorithm: How more than a row travels: `"allgatherv"`, which needs an MPI with 64-bit counts (4.0), or
            `"direct"`, every rank to every other; `"auto"`: by size, and always directly where MPI lacks such counts.
        chunk_nbytes: Round 2 sends this many bytes of each rank at a time; each chunk renews the deadline.
    """

    name = "mpi"
    capabilities = Capabilities(locality="any", needs_whole_group=True)

    def __init__(self, *, algorithm: Algorithm = "auto", chunk_nbytes: int = _CHUNK_NBYTES) -> None:
        if algorithm not in ("auto", "allgatherv", "direct"):
            raise ValueError(f"algorithm must be 'auto', 'allgatherv' or 'direct', not {algorithm!r}")
        if not 1 <= chunk_nbytes < 1 << 31:
            raise ValueError("chunk_nbytes must be at least 1 and below 2 GiB")
        self._algorithm = algorithm
        self._chunk_nbytes = chunk_nbytes
        self._group: MpiGroup | None = None
        self._channel: Channel | None = None
        self._prepared: MPI.Prequest | None = None
        """The exchange of rows, where it can be started again and again."""
        self._world_size = 0

    @classmethod
    def unavailable(cls, context: GroupContext | None) -> str | None:
        if context is not None and not isinstance(context.process_group, MpiGroup):
            return "its group is no MPI communicator"
        return None if is_installed() else NOT_INSTALLED

    @classmethod
    def join(cls, group: object) -> GroupContext:
        return cls.join_within(group, timeout_s=DEFAULT_TIMEOUT_S)

    @classmethod
    def join_within(cls, group: object, *, timeout_s: float) -> GroupContext:
        return group_of(communicator_of(group), timeout_s).context()

    @property
    def spec(self) -> str:
        options = {
            "algorithm": (self._algorithm, "auto"),
            "chunk_nbytes": (self._chunk_nbytes, _CHUNK_NBYTES),
        }
        return format_spec(self.name, {key: value for key, (value, default) in options.items() if value != default})

    def fingerprint(self) -> str:
        return f"{self.spec}, exchange {_EXCHANGE}"

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if not isinstance(context.process_group, MpiGroup):
            raise TransportError("mpi needs a group that is an MPI communicator")
        self._direct_above_nbytes = _direct_above_nbytes(self._algorithm)
        self._rank, self._world_size, self._slot_nbytes = context.rank, context.world_size, slot_nbytes
        self._make_memory()
        deadline = Deadline(timeout_s)
        await_everyone(context, deadline, self.check_interrupt)
        self._channel = context.process_group.take_channel(deadline, self.check_interrupt)
        self._group = context.process_group
        self._prepared = self._channel.prepare_all_gather(self._own[: self._row_nbytes], self._rows)

    def _make_memory(self) -> None:
        """Rows as they are sent, a length, padded, and the slot; rows of all ranks; room for what is longer."""
        from mpi4py import MPI

        world_size = self._world_size
        self._row_nbytes = min(ALIGNMENT + self._slot_nbytes, _ROW_NBYTES)
        self._own = aligned_buffer(ALIGNMENT + self._slot_nbytes)
        self._slot = self._own[ALIGNMENT:]
        self._rows = aligned_buffer(world_size * self._row_nbytes)
        self._row_specs = [self._own[: self._row_nbytes], MPI.BYTE], [self._rows, MPI.BYTE]
        self._lengths = struct.Struct("<" + f"Q{self._row_nbytes - _LENGTH.size}x" * world_size)
        read_only = self._rows.toreadonly()
        starts = range(0, world_size * self._row_nbytes, self._row_nbytes)
        self._heads = [read_only[start + ALIGNMENT : start + self._row_nbytes] for start in starts]
        self._long = payload_views(aligned_buffer(world_size * self._slot_nbytes), [self._slot_nbytes] * world_size)
        self._long[self._rank] = self._slot

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        return self._slot[:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        channel = self._channel or self._live()
        started_s = monotonic()
        _LENGTH.pack_into(self._own, 0, nbytes)
        channel.perform(self._start_rows, self._row_specs, timeout_s, self.check_interrupt)
        lengths = self._lengths.unpack(self._rows)
        longest = max(lengths)
        if longest <= self._row_nbytes - ALIGNMENT:
            return self._heads
        if longest > self._slot_nbytes:
            channel.is_clean = False
            raise ProtocolError(f"a rank claims to fill {longest} of the {self._slot_nbytes} bytes of its slot")
        is_long = [length > self._row_nbytes - ALIGNMENT for length in lengths]
        views = [view[: length if long else 0] for view, length, long in zip(self._long, lengths, is_long, strict=True)]
        self._all_gather_in_place(views, Deadline(timeout_s, started_s))
        chosen = zip(views, self._heads, is_long, strict=True)
        return [view.toreadonly() if long else head for view, head, long in chosen]

    def _start_rows(self) -> "list[MPI.Request]":
        request = self._prepared
        if request is None:
            return [self._live().comm.Iallgather(*self._row_specs)]
        request.Start()
        return [request]

    def all_gather_exact(
        self,
        parts: Sequence[memoryview],
        nbytes_per_rank: Sequence[int],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        own_nbytes = nbytes_per_rank[self._rank]
        copy_pieces(into[self._rank], parts, 0, own_nbytes)
        deadline = Deadline(timeout_s)
        for start in range(0, max(nbytes_per_rank), self._chunk_nbytes):
            self._all_gather_in_place([view[start : start + self._chunk_nbytes] for view in into], deadline)
            deadline.renew()
        return into

    def all_to_all_exact(
        self,
        parts_per_peer: Sequence[Sequence[memoryview]],
        nbytes_matrix: Sequence[Sequence[int]],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        deadline = Deadline(timeout_s)
        rank, size = self._rank, self._chunk_nbytes
        outgoing = [_joined(parts) for parts in parts_per_peer]
        into[rank][:] = outgoing[rank]
        for start in range(0, max(map(max, nbytes_matrix)), size):
            received = [view[start : start + size] for view in into]
            self._exchange([view[start : start + size] for view in outgoing], received, deadline)
            deadline.renew()
        return into

    def _all_gather_in_place(self, views: Sequence[memoryview], deadline: Deadline) -> None:
        """(all ranks) Fills the others' views; this rank's is what it sends."""
        if max(map(len, views)) > self._direct_above_nbytes:
            self._exchange([views[self._rank]] * self._world_size, views, deadline)
            return

        def start() -> "list[MPI.Request]":
            from mpi4py import MPI

            counts = list(map(len, views))
            places = [MPI.Get_address(view) if len(view) else 0 for view in views]
            everywhere = [MPI.BOTTOM, counts, places, MPI.BYTE]  # each rank's has a memory of its own
            return [self._live().comm.Iallgatherv(MPI.IN_PLACE, everywhere)]

        self._live().perform(start, views, deadline, self.check_interrupt, sum(map(len, views)))

    def _exchange(self, outgoing: Sequence[memoryview], incoming: Sequence[memoryview], deadline: Deadline) -> None:
        """(all ranks) Sends each other rank its view, and fills those that are received."""

        def start() -> "list[MPI.Request]":
            comm = self._live().comm
            peers = [peer for peer in range(self._world_size) if peer != self._rank]
            receives = [comm.Irecv(incoming[peer], peer, DATA_TAG) for peer in peers if len(incoming[peer])]
            return receives + [comm.Isend(outgoing[peer], peer, DATA_TAG) for peer in peers if len(outgoing[peer])]

        nbytes = sum(map(len, incoming)) + sum(map(len, outgoing))
        self._live().perform(start, (outgoing, incoming), deadline, self.check_interrupt, nbytes)

    def _live(self) -> Channel:
        if self._channel is None:
            raise TransportError("the transport is not open")
        return self._channel

    def peers(self) -> list[PeerState]:
        states = [PeerState.UNKNOWN] * self._world_size
        if states:
            states[self._rank] = PeerState.ALIVE
        return states

    def abort(self, reason: str) -> None:
        if self._channel is not None:
            self._channel.abort(reason)

    def close(self) -> None:
        channel, self._channel = self._channel, None
        group, self._group = self._group, None
        prepared, self._prepared = self._prepared, None
        if channel is not None and group is not None:
            if prepared is not None:
                channel.free(prepared)
            group.give_back(channel)


def _direct_above_nbytes(algorithm: Algorithm) -> int:
    from mpi4py import MPI

    has_large_counts = MPI.Get_version() >= _LARGE_COUNTS_SINCE
    if algorithm == "allgatherv" and not has_large_counts:
        version = ".".join(map(str, MPI.Get_version()))
        raise SettingsError(f"mpi:algorithm='allgatherv' needs MPI 4.0, this one is {version}")
    if algorithm == "allgatherv":
        return UNBOUNDED
    return _DIRECT_ABOVE_NBYTES if algorithm == "auto" and has_large_counts else 0


def _joined(parts: Sequence[memoryview]) -> memoryview:
    """The parts as one piece of memory: themselves, where they are one."""
    if len(parts) == 1:
        return parts[0]
    joined = aligned_buffer(sum(map(len, parts)))
    copy_pieces(joined, parts, 0, len(joined))
    return joined
