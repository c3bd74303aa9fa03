"""Ranks that are threads of this process, for contract suites: a group of them, and a run that always ends."""

import itertools
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from time import monotonic

from gather_core.local_store import LocalBell, LocalStore
from gather_core.transport import GroupContext

_numbers = itertools.count()
_LEAVE_WITHIN_S = 1.0
"""How long ranks that were told to give up get to do so."""


class SecondaryFailureError(AssertionError):
    """This rank failed after another had, and probably because of it."""


class RanksStuckError(AssertionError):
    """Some ranks did not finish in time; the message says in which step each is, with its stack."""


def local_contexts(world_size: int) -> list[GroupContext]:
    """Returns one context per rank of a new group, whose store and bell are objects that the ranks share."""
    store, bell, name = LocalStore(), LocalBell(), f"contract-{next(_numbers)}"
    ranks = tuple(range(world_size))
    return [GroupContext(rank, world_size, store, bell, ranks, name) for rank in ranks]


def run_in_threads(
    contexts: Sequence[GroupContext],
    body: Callable[[GroupContext], None],
    timeout_s: float,
    give_up: Callable[[GroupContext], None],
) -> None:
    """Runs `body` with each context, each in a thread, and waits for all.

    Args:
        contexts: One per rank.
        body: May name its thread after what it is doing, for messages.
        timeout_s: Seconds until ranks count as stuck.
        give_up: Told of a context whose rank is stuck; should make the body end.

    Raises:
        RanksStuckError: Some did not finish in time. What still runs a second later is left behind, as daemon threads.
        AssertionError: The body raised on some ranks; says what, leaving out a `SecondaryFailureError` where it can.
    """
    failures: dict[int, BaseException] = {}

    def run_rank(context: GroupContext) -> None:
        try:
            body(context)
        except BaseException as exc:
            failures[context.rank] = exc

    threads = [
        threading.Thread(target=run_rank, args=(context,), name=f"rank {context.rank}", daemon=True)
        for context in contexts
    ]
    for thread in threads:
        thread.start()
    _join(threads, timeout_s)
    stuck = [number for number, thread in enumerate(threads) if thread.is_alive()]
    if stuck:
        report = "\n".join(_stack(threads[number]) for number in stuck)
        for number in stuck:
            give_up(contexts[number])
        _join(threads, _LEAVE_WITHIN_S)
        raise RanksStuckError(f"{len(stuck)} of {len(threads)} ranks are stuck since {timeout_s:g} s:\n{report}")
    if failures:
        first = {rank: exc for rank, exc in failures.items() if not isinstance(exc, SecondaryFailureError)}
        failures = first or failures
        text = "\n".join(f"on rank {rank}: {exc}" for rank, exc in sorted(failures.items()))
        raise AssertionError(text) from failures[min(failures)]


def _join(threads: Sequence[threading.Thread], timeout_s: float) -> None:
    deadline = monotonic() + timeout_s
    for thread in threads:
        thread.join(max(deadline - monotonic(), 0))


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return f"--- {thread.name}\n" + ("".join(traceback.format_stack(frame)) if frame else "it has just ended\n")
