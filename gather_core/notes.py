"""Notes between the ranks of one Gatherer, outside its transport: aborts, and who is where when something went wrong.

Both go through the store and cost nothing until they are needed. Keys: `abort` (the first note wins), `asked` (the
first rank that wants to know rings everybody), `position/<rank>` (each rank's answer, given by its bell's thread).
"""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic, sleep

from gather_core.bell import Bell
from gather_core.errors import (
    AbortedError,
    DesyncError,
    GatherError,
    PeerLostError,
    TransportTimeoutError,
    format_ranks,
)
from gather_core.transport import Store

_log = logging.getLogger("gather_core")
_ANSWER_WITHIN_S = 1.0
_SEND_WITHIN_S = 2.0

Position = tuple[int, str, str, str]
"""Operation number, operation, tag, phase; phase "done" means that the rank is outside any operation."""


class Notes:
    """One rank's end. `check` is what waits call; it is a read of one attribute while nobody aborts."""

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
        self._aborted: tuple[int, str] | None = None
        self._bell.listen(scope, ranks[rank], self._on_ring)

    def close(self) -> None:
        """Stops listening; idempotent."""
        self._bell.stop_listening(self._scope, self._ranks[self._rank])

    def check(self) -> None:
        """Raises `AbortedError` if another rank has aborted."""
        if self._aborted is not None:
            rank, text = self._aborted
            raise AbortedError(f"rank {rank} aborted: {text}", rank)

    def origin(self, exc: AbortedError) -> AbortedError:
        """Returns the abort that began it all: what a transport reports may have been passed on by another rank."""
        try:
            self._on_ring()
            self.check()
        except AbortedError as first:
            return exc if first.rank == exc.rank else first
        except RuntimeError as gone:
            _log.debug("the store is gone, nobody can say who aborted first: %s", gone)
        return exc

    def abort(self, text: str) -> None:
        """Tells the others, once, that this rank has given up; returns after 2 s at the latest, delivered or not."""
        sender = threading.Thread(target=self._send_abort, args=(text,), name="gather-core-abort", daemon=True)
        sender.start()
        sender.join(_SEND_WITHIN_S)

    def positions(self) -> dict[int, Position]:
        """Returns where each rank is, as far as it answers within a second and before an abort explains everything."""
        answers: dict[int, Position] = {self._rank: self.position}
        asker = threading.Thread(target=self._ask, args=(answers,), name="gather-core-ask", daemon=True)
        asker.start()
        asker.join(_ANSWER_WITHIN_S + _SEND_WITHIN_S)
        return dict(answers)

    def explain(self, exc: TransportTimeoutError | PeerLostError | DesyncError) -> GatherError:
        """Returns a better error, after asking the others where they are.

        A transport knows addresses at best, and never why a rank is late.
        """
        positions = self.positions()
        if not isinstance(exc, DesyncError):  # which every rank finds by itself, from the same slots
            try:
                self.check()
            except AbortedError as aborted:
                return aborted
        report = explain(exc, self.position, positions, len(self._ranks))
        if isinstance(exc, TransportTimeoutError):
            return TransportTimeoutError(report.text, report.silent, report.elsewhere)
        if isinstance(exc, PeerLostError):
            return PeerLostError(report.text, report.silent or exc.ranks)
        return DesyncError(report.text)

    def _others(self) -> tuple[int, ...]:
        return self._ranks[: self._rank] + self._ranks[self._rank + 1 :]

    def _send_abort(self, text: str) -> None:
        try:
            self._store.compare_set("abort", "", json.dumps([self._rank, text]))
            self._bell.ring(self._scope, self._others())
        except RuntimeError as exc:
            _log.warning("rank %d could not tell the others that it aborted: %s", self._rank, exc)

    def _ask(self, answers: dict[int, Position]) -> None:
        try:
            self._post_position()
            if self._store.compare_set("asked", "", str(self._rank)) == str(self._rank).encode():
                self._bell.ring(self._scope, self._others())
            deadline = monotonic() + _ANSWER_WITHIN_S
            while len(answers) < len(self._ranks) and monotonic() < deadline and self._aborted is None:
                for rank in range(len(self._ranks)):
                    if rank not in answers and self._store.check([f"position/{rank}"]):
                        seq, operation, tag, phase = json.loads(self._store.get(f"position/{rank}"))
                        answers[rank] = (seq, operation, tag, phase)
                sleep(0.01)
        except RuntimeError as exc:
            _log.debug("the store is gone, nobody can say where the ranks are: %s", exc)

    def _post_position(self) -> None:
        self._store.set(f"position/{self._rank}", json.dumps(self.position))

    def _on_ring(self) -> None:
        if self._store.check(["asked"]) and not self._store.check([f"position/{self._rank}"]):
            self._post_position()
        if self._aborted is None and self._store.check(["abort"]):
            rank, text = json.loads(self._store.get("abort"))
            if rank != self._rank:
                self._aborted = (rank, text)


@dataclass(frozen=True)
class Report:
    """What the positions say about a failed operation."""

    text: str
    silent: list[int]
    """Ranks that did not answer."""
    elsewhere: list[int]
    """Ranks that are alive, and at another operation or outside any."""


def explain(cause: Exception, own: Position, positions: Mapping[int, Position], world_size: int) -> Report:
    """Says who is missing and where the others are, from the view of a rank at `own` that failed with `cause`."""
    silent = [rank for rank in range(world_size) if rank not in positions]
    elsewhere = [
        rank
        for rank, position in sorted(positions.items())
        if position[:3] != own[:3] or (position[3] == "done") != (own[3] == "done")
    ]
    lines = [f"{_name(own)}: {cause}"]
    if silent:
        lines.append(f"no sign of life from {format_ranks(silent)}")
    for rank in elsewhere:
        never = "never entered it and " if positions[rank][0] < own[0] else ""
        lines.append(f"rank {rank} {never}{_where(positions[rank])}")
    return Report("; ".join(lines), silent, elsewhere)


def _name(position: Position) -> str:
    seq, operation, tag, _ = position
    return f"{operation} #{seq}" + (f" {tag!r}" if tag else "")


def _where(position: Position) -> str:
    if position[0] == 0:
        return "has called nothing yet"
    return f"is done with {_name(position)}" if position[3] == "done" else f"is in {_name(position)}"
