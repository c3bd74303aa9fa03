"""Ranks of shared memory that are threads of one process."""

import threading
from collections.abc import Callable
from typing import Any

from gather_core.transport import GroupContext
from gather_transports.shm import ShmTransport

SLOT = 1024


def on_all(contexts: list[GroupContext], body: Callable[[ShmTransport], object]) -> list[Any]:
    """What `body` returns or raises on each rank, with an open transport; ranks are threads."""
    outcomes: list[Any] = [None] * len(contexts)
    all_open = threading.Barrier(len(contexts))

    def run_rank(context: GroupContext) -> None:
        transport = ShmTransport()
        try:
            transport.open(context, SLOT, timeout_s=2)
            all_open.wait(10)
            outcomes[context.rank] = body(transport)
        except Exception as exc:
            outcomes[context.rank] = exc
        finally:
            transport.close()

    threads = [threading.Thread(target=run_rank, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def exchange(transport: ShmTransport, timeout_s: float = 20) -> list[int]:
    """One exchange in which each rank sends its number; the numbers that came."""
    transport.slot(1)[0] = transport.rank
    return [slot[0] for slot in transport.all_gather_slots(1, timeout_s=timeout_s)]
