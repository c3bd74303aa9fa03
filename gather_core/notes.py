"""Notes between the ranks of one Gatherer, outside its transport: aborts, and who is where when something went wrong.

Both go through the store and cost nothing until they are needed. Keys: `abort` (the first note wins), `asked` (the
first rank that wants to know rings everybody), `position/<rank>` (each rank's answer, given by its bell's thread).
"""

import json
import logging
from collections.abc import Sequence
from functools import partial
from time import sleep

from gather_core.background import call_within, is_exiting
from gather_core.bell import Bell
from gather_core.deadline import Deadline
from gather_core.errors import (
    AbortedError,
    ClosedError,
    DesyncError,
    GatherError,
    PeerLostError,
    TransportTimeoutError,
    printable,
    shorten,
)
from gather_core.positions import Answers, Position, as_told, explain
from gather_core.process_id import this_pid
from gather_core.transport import Store

_log = logging.getLogger("gather_core")
NOTES_WITHIN_S = 1.5
"""How long a failed operation takes at most to ask the others and to tell them, in seconds."""
_ANSWER_WITHIN_S = 1.0
_ASK_WITHIN_S = 1.2
"""The asking itself ends before, unless the store does not answer."""
_EXITING = "this process is exiting"


class Notes:
    """One rank's end. `check` is what waits call; it costs next to nothing while nobody aborts."""

    def __init__(self, store: Store, bell: Bell, scope: str, rank: int, ranks: tuple[int, ...]) -> None:
        """Starts listening.

        Args:
            store: Private to the Gatherer; never the client that the job itself uses.
            bell: Rings ranks of the job.
            scope: The Gatherer's name on the bell.
            rank: This rank, in group ranks.
            ranks: The global rank of each group rank.
        """
        self.position: Position = (0, "", "", "done")
        self._store = store
        self._bell = bell
        self._scope = scope
        self._rank = rank
        self._ranks = ranks
        self._pid = this_pid()
        self.aborted: tuple[int, str] | None = None
        """The first rank that has aborted, and why."""
        self._bell.listen(scope, ranks[rank], self._on_ring)

    def close(self) -> None:
        """Stops listening, but for one last answer to who asks where this rank is; idempotent."""
        phase = "closed" if self.position[3] == "done" else "closed within"
        last_answer = partial(_answer, self._store, self._rank, (*self.position[:3], phase))
        self._bell.stop_listening(self._scope, self._ranks[self._rank], last_answer)

    def check_process(self) -> None:
        """Raises ClosedError in a forked child."""
        if self._pid != this_pid():
            raise ClosedError("this Gatherer belongs to the parent process: construct one after the fork")

    def check(self) -> None:
        """Raises AbortedError if another rank has aborted; ClosedError in a child that was forked meanwhile."""
        self.check_process()
        if self.aborted is not None:
            rank, text = self.aborted
            raise AbortedError(f"rank {rank} aborted: {text}", rank)

    def origin(self, exc: AbortedError) -> AbortedError:
        """Returns the abort that began it all: what a transport reports may have been passed on by another rank."""
        call_within(self._look, _ASK_WITHIN_S, "look")
        try:
            self.check()
        except AbortedError as first:
            return exc if first.rank == exc.rank else first
        return exc

    def abort(self, text: str, deadline: Deadline | None = None) -> None:
        """Tells the others, once, that this rank has given up; returns at the deadline, delivered or not."""
        deadline = deadline or Deadline(NOTES_WITHIN_S)
        call_within(partial(self._send_abort, text), deadline.remaining_s(), "abort")

    def ask(self, deadline: Deadline, dead: Sequence[int] = ()) -> Answers:
        """Returns where each rank is, as far as it answers within a second and before an abort explains everything.

        Ranks that are known to be dead are not waited for.
        """
        answers = Answers({self._rank: as_told(self.position)})
        asking = partial(self._ask, answers, frozenset(dead))
        ended = call_within(asking, min(_ASK_WITHIN_S, deadline.remaining_s()), "ask")
        cut_short = _EXITING if is_exiting() and not ended else answers.cut_short
        return Answers(dict(answers.positions), cut_short)

    def explain(
        self, exc: TransportTimeoutError | PeerLostError | DesyncError, deadline: Deadline, dead: Sequence[int] = ()
    ) -> GatherError:
        """Returns a better error, after asking the others where they are.

        A transport knows addresses at best, and never why a rank is late; of `dead` ranks it knows that their
        processes have ended.
        """
        answers = self.ask(deadline, dead)
        if not isinstance(exc, DesyncError):  # which every rank finds by itself, from the same slots
            try:
                self.check()
            except AbortedError as aborted:
                return aborted
        report = explain(exc, as_told(self.position), answers, len(self._ranks))
        if isinstance(exc, TransportTimeoutError):
            return TransportTimeoutError(report.text, report.silent, report.behind)
        if isinstance(exc, PeerLostError):
            return PeerLostError(report.text, exc.ranks or report.silent)
        return DesyncError(report.text)

    def _others(self) -> tuple[int, ...]:
        return self._ranks[: self._rank] + self._ranks[self._rank + 1 :]

    def _send_abort(self, text: str) -> None:
        try:
            self._store.compare_set("abort", "", json.dumps([self._rank, text]))
            self._bell.ring(self._scope, self._others())
        except RuntimeError as exc:
            _log.warning("rank %d could not tell the others that it aborted: %s", self._rank, exc)

    def _ask(self, answers: Answers, dead: frozenset[int]) -> None:
        deadline = Deadline(_ANSWER_WITHIN_S)
        try:
            _post(self._store, self._rank, self.position)
            if self._store.compare_set("asked", "", str(self._rank)) == str(self._rank).encode():
                self._bell.ring(self._scope, self._others())
            while True:
                self._on_ring()  # in case that no bell rings: who rang it may have died of it
                reason_to_stop = self._reason_to_stop()  # before the last look: who aborts may have answered first
                self._read(answers.positions)
                if len(dead.union(answers.positions)) == len(self._ranks) or deadline.passed():
                    answers.cut_short = ""
                    return
                if reason_to_stop:
                    answers.cut_short = reason_to_stop
                    return
                sleep(0.01)
        except RuntimeError as exc:
            _log.debug("the store is gone, nobody can say where the ranks are: %s", exc)
            answers.cut_short = "the job's store is gone"

    def _reason_to_stop(self) -> str:
        if self.aborted is not None:
            return f"rank {self.aborted[0]} aborted meanwhile"
        return _EXITING if is_exiting() else ""

    def _read(self, positions: dict[int, Position]) -> None:
        """Adds the positions of those that have answered since."""
        for rank in range(len(self._ranks)):
            if rank not in positions and self._store.check([f"position/{rank}"]):
                seq, operation, tag, phase = json.loads(self._store.get(f"position/{rank}"))
                positions[rank] = (seq, printable(operation), tag, phase)

    def _look(self) -> None:
        try:
            self._on_ring()
        except RuntimeError as exc:
            _log.debug("the store is gone, nobody can say who aborted first: %s", exc)

    def _on_ring(self) -> None:
        _answer(self._store, self._rank, self.position)
        if self.aborted is None and self._store.check(["abort"]):
            rank, text = json.loads(self._store.get("abort"))
            if rank != self._rank:
                self.aborted = (rank, printable(shorten(text)))


def _answer(store: Store, rank: int, position: Position) -> None:
    """Says where this rank is, if somebody has asked, and once."""
    if store.check(["asked"]) and not store.check([f"position/{rank}"]):
        _post(store, rank, position)


def _post(store: Store, rank: int, position: Position) -> None:
    store.set(f"position/{rank}", json.dumps(as_told(position)))
