"""Waiting for the ranks of a shared-memory group: bounded, open to interrupts, and with an eye on the peers' lives."""

from collections.abc import Callable, Mapping, Sequence

from gather_core.deadline import POLL_S, Deadline
from gather_core.errors import AbortedError, PeerLostError, TransportError, TransportTimeoutError, format_ranks
from gather_transports.process_life import ProcessLife
from gather_transports.semaphores import Semaphore, try_wait, wait
from gather_transports.shm_control import ControlBlock, Leave
from gather_transports.shm_spin import Spinner

_FIRST_SLICE_S = 0.01


class PeerWait:
    """How one rank waits for the tokens of its peers.

    Args:
        control: The group's control block.
        rank: This rank.
        lives: The processes of the peers, by rank.
    """

    def __init__(self, control: ControlBlock, rank: int, lives: Mapping[int, ProcessLife]) -> None:
        self.tokens = [control.token(peer, rank) for peer in lives]
        """What the peers give this rank; the one that it last had to wait for comes first."""
        self.given_up: str | None = None
        """Set by another thread to end the wait: why."""
        self._ranks = dict(zip(self.tokens, lives, strict=True))
        self._control = control
        self._rank = rank
        self._lives = lives
        self._spinner = Spinner()

    def wait_from(self, token: Semaphore, timeout_s: float, check_interrupt: Callable[[], None]) -> None:
        """Takes this token and all that come behind it in `tokens`.

        Raises:
            TransportTimeoutError: Some did not come in time; names their ranks.
            PeerLostError: The process of a peer has ended, or it has closed its transport.
            AbortedError: A peer has given up, or this rank.
            BaseException: What `check_interrupt` raises, or a signal's handler.
        """
        deadline = Deadline(timeout_s)
        pending = self.tokens[self.tokens.index(token) :]
        last = token
        while pending:
            last = pending[0]
            if not self._spinner.take(last):
                pending = self._sleep(pending, deadline, check_interrupt)
            pending = [token for token in pending if token is not last and try_wait(token)]
        if last is not self.tokens[0]:
            # Whoever sleeps for the last to come is woken only once, and finds all other tokens there.
            self.tokens.remove(last)
            self.tokens.insert(0, last)

    def _sleep(
        self, pending: list[Semaphore], deadline: Deadline, check_interrupt: Callable[[], None]
    ) -> list[Semaphore]:
        """Takes the first of the pending tokens and perhaps others; returns those that have not come."""
        first, slice_s = pending[0], _FIRST_SLICE_S
        while not wait(first, min(slice_s, deadline.remaining_s())):
            check_interrupt()
            pending = self._not_lost([token for token in pending if try_wait(token)])
            if first not in pending:
                return pending
            self._check_still_wanted(pending, deadline)
            slice_s = min(2 * slice_s, POLL_S)
        return pending[1:]

    def _not_lost(self, pending: list[Semaphore]) -> list[Semaphore]:
        """Looks at the processes of those that have not come; returns those that still may.

        Raises:
            PeerLostError: Some never will.
            AbortedError: And a peer has given up before, or this rank.
        """
        gone = [token for token in pending if self._is_gone(self._ranks[token])]
        lost = [self._ranks[token] for token in gone if try_wait(token)]  # it may have come before its rank went
        if lost:
            self._check_nobody_gave_up()  # first, as a rank that gives up often ends soon after
            raise self._lost(lost)
        return [token for token in pending if token not in gone]

    def _is_gone(self, rank: int) -> bool:
        return self._lives[rank].is_dead() or self._has_closed(rank)

    def _has_closed(self, rank: int) -> bool:
        farewell = self._control.farewell(rank)
        return farewell is not None and farewell[0] is Leave.CLOSED

    def _lost(self, ranks: Sequence[int]) -> TransportError:
        ended = [rank for rank in ranks if not self._has_closed(rank)]
        text = f"{format_ranks(ranks)} closed the transport before this exchange"
        if ended:
            text = f"the process of {format_ranks(ended)} has ended"
        return PeerLostError(text, ended or ranks)

    def _check_nobody_gave_up(self) -> None:
        if self.given_up is not None:
            raise self.aborted(self._rank)
        for rank in self._lives:
            farewell = self._control.farewell(rank)
            if farewell is not None and farewell[0] is Leave.ABORTED:
                raise self.aborted(rank)

    def aborted(self, rank: int) -> AbortedError:
        """What a rank has given up with, which may be this one."""
        if rank == self._rank:
            return AbortedError(self.given_up or "aborted", rank)
        farewell = self._control.farewell(rank)
        return AbortedError(f"rank {rank} aborted" + (f": {farewell[1]}" if farewell is not None else ""), rank)

    def _check_still_wanted(self, pending: Sequence[Semaphore], deadline: Deadline) -> None:
        self._check_nobody_gave_up()
        if deadline.passed():
            late = sorted(self._ranks[token] for token in pending)
            text = f"{format_ranks(late)} did not come within {deadline.timeout_s:g} s"
            stopped = [rank for rank in late if self._lives[rank].is_stopped()]
            if stopped:
                text += f"; {format_ranks(stopped)} stopped by a signal or debugger"
            raise TransportTimeoutError(text, late)
