"""Ranks for a benchmark: local processes with a process group over loopback."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from gather_bench.loopback import LOOPBACK_INTERFACE, join_loopback_store, loopback_store

_TIMEOUT = timedelta(seconds=300)
_LOOK_FOR_FAILURES_EVERY_S = 0.1
_END_WITHIN_S = 5.0
_ORPHANED = 1


class NoResultError(RuntimeError):
    """Every rank has ended as if all were well, and rank 0 has returned nothing: something has exited there."""


def run_local_ranks(world_size: int, body: Callable[..., Any], *args: Any) -> Any:
    """Runs `body(*args)` on every rank of a new local Gloo group and returns what rank 0's returned.

    Args:
        world_size: How many processes to start.
        body: A module-level function; it finds the default group initialised and one thread per rank.
        args: What it gets; everything picklable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: A rank raised; the others have been stopped.
        torch.multiprocessing.ProcessExitedException: A rank was killed or exited; the others have been stopped.
        NoResultError: All ranks exited with status 0 before they had returned.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK_INTERFACE)
    store = loopback_store()
    from_root, to_parent = multiprocessing.get_context("spawn").Pipe(duplex=False)
    others = set(multiprocessing.active_children())
    try:
        ranks = spawn(  # type: ignore[no-untyped-call]
            _enter, (world_size, store.port, to_parent, body, args), world_size, join=False
        )
        to_parent.close()
        return _result_of(ranks, from_root)
    finally:
        _end(set(multiprocessing.active_children()) - others)


def _result_of(ranks: Any, from_root: Any) -> Any:
    while not from_root.poll(_LOOK_FOR_FAILURES_EVERY_S):
        ranks.join(timeout=0)
    results = []
    with suppress(EOFError):  # a rank failed: join raises what it raised
        results.append(from_root.recv())
    while not ranks.join():
        pass
    if not results:
        raise NoResultError("all ranks have exited before they returned")
    return results[0]


def _end(ranks: Collection[BaseProcess]) -> None:
    """Ends the ranks that still run, because this process was interrupted, perhaps at their start, or one failed."""
    for process in ranks:
        process.kill()
    for process in ranks:
        process.join(_END_WITHIN_S)


def _enter(rank: int, world_size: int, port: int, to_parent: Any, body: Callable[..., Any], args: Any) -> None:
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    torch.set_num_threads(1)
    store = join_loopback_store(port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    result = body(*args)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        to_parent.send(result)
    to_parent.close()


def _end_with_parent() -> None:
    """Else a parent that was killed leaves ranks that wait for each other, which no signal to them interrupts."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(_ORPHANED)
