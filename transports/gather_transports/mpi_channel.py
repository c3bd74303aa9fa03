"""A communicator of one Gatherer at a time: its collectives, its aborts, and whether it can be used again."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gather_core.deadline import Deadline
from gather_core.errors import AbortedError, PeerLostError, TransportError, printable, summarize
from gather_core.process_id import this_pid
from gather_transports.mpi_waits import are_soon_complete, give_up, keep_for_ever, wait

if TYPE_CHECKING:
    from mpi4py import MPI

_ABORT_TAG = 1
DATA_TAG = 2
_REASON_NBYTES = 512
_PREPARE_ALONE = frozenset({"MPICH", "Open MPI"})
"""MPIs that were seen to prepare a collective without waiting for other ranks, as the standard would let them."""


class Channel:
    """Communicators are kept and never freed, as MPI may make freeing one wait for all ranks, and closing must not.

    Args:
        comm: A duplicate on which nobody else sends.
        index: Which of its group's it is, alike on all ranks.
        spins: Whether this rank has a core of its own.
    """

    def __init__(self, comm: "MPI.Intracomm", index: int, *, spins: bool) -> None:
        self.comm = comm
        self.index = index
        self.num_calls = 0
        """How many collectives have gone well. Ranks for which it is the same owe each other nothing."""
        self.is_clean = True
        """False in a collective, and for good after one that failed."""
        self._pid = this_pid()
        self._spins = spins
        self._aborted: str | None = None

    def perform(
        self,
        start: "Callable[[], Sequence[MPI.Request]]",
        memory: object,
        within: Deadline | float,
        check_interrupt: Callable[[], None],
        nbytes: int = 0,
    ) -> None:
        """(all ranks) Starts requests and waits for them.

        Args:
            start: Starts them.
            memory: What they read and write.
            within: The deadline, or so many seconds from now.
            check_interrupt: As `Transport.check_interrupt`.
            nbytes: How much is under way in all.

        Raises:
            AbortedError: Another rank called `abort`, or another thread here.
            TransportError: An earlier call failed, or as `wait` and `give_up`. The channel is unusable afterwards.
        """
        if not self.is_clean:
            raise self._ended()
        if self._pid != this_pid():
            raise TransportError("the transport belongs to the parent process")
        self.is_clean = False
        requests: Sequence[MPI.Request] = ()
        try:
            requests = start()
            if not (self._spins and are_soon_complete(requests)):
                deadline = within if isinstance(within, Deadline) else Deadline(within)
                wait(requests, deadline, (check_interrupt, self._look_for_aborts), nbytes=nbytes)
        except BaseException as exc:
            give_up((requests, memory), exc)
        if self._aborted is not None:
            raise self._ended()
        self.num_calls += 1
        self.is_clean = True

    def prepare_all_gather(self, own: memoryview, rows: memoryview) -> "MPI.Prequest | None":
        """(all ranks) An all-gather of this memory that is started again and again, at half of what a new one takes.

        Returns:
            A request for `perform`; None where this MPI has none, or might wait here for the others without a deadline.

        Raises:
            PeerLostError: MPI reports an error.
        """
        from mpi4py import MPI

        if MPI.get_vendor()[0] not in _PREPARE_ALONE:
            return None
        try:
            request = self.comm.Allgather_init([own, MPI.BYTE], [rows, MPI.BYTE])
        except NotImplementedError:  # not asked by version: Open MPI has it before it calls itself MPI 4.0
            return None
        except MPI.Exception as exc:
            raise PeerLostError(f"MPI failed: {summarize(exc)}") from exc
        self.num_calls += 1  # so that it is not used again where this has failed on some rank
        return request

    def free(self, request: "MPI.Prequest") -> None:
        """Frees what `prepare_all_gather` has returned, unless it is in use, the parent process's, or MPI has ended."""
        from mpi4py import MPI

        if self.is_clean and self._pid == this_pid() and not MPI.Is_finalized():
            request.Free()

    def abort(self, reason: str) -> None:
        """Sends word to all ranks; waits for nobody, any thread, idempotent."""
        if self._aborted is not None or self._pid != this_pid():
            return
        self._aborted = reason
        self.is_clean = False
        text = bytearray(reason.encode("utf-8", "replace")[:_REASON_NBYTES])
        peers = [peer for peer in range(self.comm.size) if peer != self.comm.rank]
        keep_for_ever((text, [self.comm.Isend(text, peer, _ABORT_TAG) for peer in peers]))

    def _look_for_aborts(self) -> None:
        from mpi4py import MPI

        if self._aborted is not None:
            raise self._ended()
        status = MPI.Status()
        message = self.comm.Improbe(MPI.ANY_SOURCE, _ABORT_TAG, status)
        if message is not None:
            text = bytearray(status.Get_count(MPI.BYTE))
            message.Recv(text)
            rank = status.Get_source()
            raise AbortedError(f"rank {rank} aborted: {printable(text.decode('utf-8', 'replace'))}", rank)

    def _ended(self) -> TransportError:
        if self._aborted is not None:
            return AbortedError(f"aborted: {self._aborted}", self.comm.rank)
        return TransportError("an earlier exchange failed, whose bytes may still arrive")
