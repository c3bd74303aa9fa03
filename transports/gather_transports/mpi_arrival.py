"""Coming together through the store, before anything collective: what MPI has begun, it cannot take back."""

import threading
from collections.abc import Callable

from gather_core.background import Background
from gather_core.deadline import Deadline
from gather_core.errors import TransportError, TransportTimeoutError, format_ranks, summarize
from gather_core.transport import GroupContext

_GRACE_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.05
_OPEN, _SHUT = "open", "shut"


def await_everyone(context: GroupContext, deadline: Deadline, check_interrupt: Callable[[], None]) -> None:
    """(all ranks) Returns once every rank of the context has called it, or raises on every rank that has.

    Raises:
        TransportTimeoutError: A rank did not come; names it.
        TransportError: The store failed.
    """
    call = Background(lambda stop: _pass_gate(context, deadline, stop), "gather-core-mpi-open")
    try:
        answered = call.start().wait(deadline.remaining_s() + _GRACE_S, check_interrupt)
    finally:
        call.stop()
    if not answered:
        raise TransportTimeoutError("the ranks' store does not answer")
    try:
        missing = call.result()
    except RuntimeError as exc:
        raise TransportError(f"the ranks' store failed: {summarize(exc)}") from exc
    if missing is not None:
        who = format_ranks(missing) if missing else "another rank"
        raise TransportTimeoutError(f"{who} did not come within {deadline.timeout_s:.3g} s", missing)


def _pass_gate(context: GroupContext, deadline: Deadline, stop: threading.Event) -> list[int] | None:
    """Returns None where all have come, else those that have not; the last to come and the first to give up decide."""
    store = context.store
    store.set(f"here/{context.rank}", "")
    if store.add("arrived", 1) == context.world_size:
        store.compare_set("gate", "", _OPEN)
    pause_s = _FIRST_PAUSE_S
    while not store.check(["gate"]):
        if stop.wait(pause_s) or deadline.passed():
            store.compare_set("gate", "", _SHUT)
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
    if store.get("gate") == _OPEN.encode():
        return None
    return [rank for rank in range(context.world_size) if not store.check([f"here/{rank}"])]
