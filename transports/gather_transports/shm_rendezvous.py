"""How the ranks of a shared-memory group find each other's files: each publishes one note in the group's store."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gather_core.background import Background
from gather_core.deadline import Deadline
from gather_core.errors import TransportError, TransportTimeoutError, format_ranks
from gather_core.transport import GroupContext
from gather_transports.process_life import Birth, own_birth
from gather_transports.shared_file import FileAddress

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.05
_REPORT_WITHIN_S = 0.25
"""How long before the deadline the store is asked for the last time, in seconds."""


@dataclass(frozen=True)
class Note:
    """What one rank tells the others."""

    birth: Birth
    pid_namespace: int
    """What `birth.pid` is a number of: containers count their processes anew."""
    uid: int
    region: FileAddress
    control: FileAddress | None
    """The group's control block, from rank 0."""

    def to_json(self) -> str:
        """As text for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "Note":
        """Reads a note of this version of gather-core; all ranks have the same (`fingerprint`)."""
        fields: dict[str, Any] = json.loads(text)
        fields["birth"] = Birth(**fields["birth"])
        fields["region"] = FileAddress(**fields["region"])
        fields["control"] = FileAddress(**fields["control"]) if fields["control"] else None
        return cls(**fields)


def own_note(region: FileAddress, control: FileAddress | None) -> Note:
    """Describes this process."""
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return Note(own_birth(), namespace, os.geteuid(), region, control)


def exchange_notes(
    context: GroupContext, note: Note, timeout_s: float, check_interrupt: Callable[[], None]
) -> list[Note]:
    """(all ranks) Returns the notes of all ranks.

    Raises:
        TransportTimeoutError: Some ranks have published none; names them.
        TransportError: The ranks cannot share memory; names those at odds with this one.
        BaseException: What `check_interrupt` raises, or a signal's handler.
    """
    missing = list(range(context.world_size))
    deadline = Deadline(timeout_s)
    earlier = Deadline(timeout_s - min(timeout_s / 10, _REPORT_WITHIN_S))  # so that it still can say who is missing
    exchange = Background(lambda stop: _exchange(context, note, earlier, missing, stop), "gather-core-shm-open")
    try:
        is_finished = exchange.start().wait(deadline.remaining_s(), check_interrupt)
    finally:
        exchange.stop()
    notes = exchange.result() if is_finished else {}
    if len(notes) < context.world_size:
        late = [rank for rank in missing if rank != context.rank]
        text = f"{format_ranks(late)} did not come to shared memory in the {timeout_s:.1f} s left for it"
        raise TransportTimeoutError(text, late)
    in_order = [notes[rank] for rank in range(context.world_size)]
    _check(in_order, context.rank)
    return in_order


def _exchange(
    context: GroupContext, note: Note, deadline: Deadline, missing: list[int], stop: threading.Event
) -> dict[int, Note]:
    """Runs on a thread, as a store whose host does not answer blocks; keeps `missing` up to date."""
    store = context.store
    store.set(f"note/{context.rank}", note.to_json())
    notes: dict[int, Note] = {}
    pause_s = _FIRST_PAUSE_S
    while True:
        for rank in list(missing):
            if store.check([f"note/{rank}"]):
                notes[rank] = Note.from_json(store.get(f"note/{rank}"))
                missing.remove(rank)
        if not missing or deadline.passed() or stop.wait(min(pause_s, deadline.remaining_s())):
            return notes
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)


def _check(notes: Sequence[Note], rank: int) -> None:
    own = notes[rank]
    users = [other for other, note in enumerate(notes) if note.uid != own.uid]
    if users:
        raise TransportError(f"another user than that of rank {rank}, so no memory to share: {format_ranks(users)}")
    elsewhere = [other for other, note in enumerate(notes) if note.pid_namespace != own.pid_namespace]
    if elsewhere:
        raise TransportError(
            f"in another PID namespace than rank {rank}, as in another container, so no memory to share: "
            f"{format_ranks(elsewhere)}"
        )
