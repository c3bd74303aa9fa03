"""One rank's part in a case, from the traces before to the traces after. Runs in the ranks' processes."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from faults.case import Case
from faults.names import named_ranks
from faults.scene import SHORT_S, WORLD_SIZE, Scene
from faults.seen import Process, Seen
from faults.traces import Traces
from gather_core import Gatherer, GroupBrokenError, SetupError
from gather_core.host_identity import HOST_ID

_REFUSES_WITHIN_S = 1.0


def perform(rank: int, world_size: int, case: Case, transport: str, folder: Path, patience_s: float) -> Process:
    """(all ranks) As a process of its own, in a job of torch.distributed or of MPI."""
    with _host_of(rank, transport):
        if transport == "all_gather_object":
            _init_process_group(rank, world_size)
        _make_what_lasts(transport)
        scene = Scene(rank, world_size, transport, folder, None, _other_group_of(transport))
        if case.prepare is not None:
            case.prepare(scene)
        before = Traces.now()
        seen = _perform(scene, case)
        return Process([seen], before.left(patience_s))


def _make_what_lasts(transport: str) -> None:
    """(all ranks) Constructs, for what then stays as long as the process."""
    try:
        Gatherer(transport=transport).close()
    except SetupError:  # the case before left a construction to the others, of which this rank hears only now
        Gatherer(transport=transport).close()


def perform_in_threads(rank: int, world_size: int, case: Case, folder: Path, patience_s: float) -> Process:
    """All ranks are threads of this process."""
    from gather_transports.threads import ThreadGroup, ThreadRank

    group, other = ThreadGroup(WORLD_SIZE), ThreadGroup(WORLD_SIZE)
    before = Traces.now()

    def on_thread(member: ThreadRank) -> Seen:
        scene = Scene(member.rank, WORLD_SIZE, "threads", folder, member, lambda: other.member(member.rank))
        if case.prepare is not None:
            case.prepare(scene)
        return _perform(scene, case)

    outcomes = group.run(on_thread)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return Process([outcome for outcome in outcomes if isinstance(outcome, Seen)], before.left(patience_s))


def _perform(scene: Scene, case: Case) -> Seen:
    error: BaseException | None = None
    try:
        case.act(scene)
    except (Exception, KeyboardInterrupt) as exc:
        error = exc
    ended_s = time.monotonic()
    try:
        then = _afterwards(scene, case)
    finally:
        scene.close()
    if error is None:
        return Seen(scene.rank, "", (), "", ended_s, then)
    return Seen(scene.rank, type(error).__name__, named_ranks(error), str(error)[:2000], ended_s, then)


def _afterwards(scene: Scene, case: Case) -> str:
    """What a later call does, in the words of `Case.afterwards`."""
    if case.afterwards == "none" or not scene.gatherers:
        return "none"
    gatherer = scene.gatherers[-1]
    started_s = time.monotonic()
    try:
        gathered = gatherer.all_gather(b"%d" % scene.rank)  # which every codec takes
    except GroupBrokenError:
        took_s = time.monotonic() - started_s
        return "broken" if took_s < _REFUSES_WITHIN_S else f"broken, after {took_s:.1f} s"
    except BaseException as exc:
        return f"{type(exc).__name__}: {exc}"
    return "goes on" if gathered == [b"%d" % rank for rank in range(scene.world_size)] else f"gathers {gathered!r:.200}"


@contextmanager
def _host_of(rank: int, transport: str) -> Iterator[None]:
    """Makes two hosts of this machine where the transport is one for several."""
    if transport != "shm+gloo":
        yield
        return
    os.environ[HOST_ID] = f"host {rank // 2}"
    try:
        yield
    finally:
        del os.environ[HOST_ID]


def _init_process_group(rank: int, world_size: int) -> None:
    """With a timeout of its own: that of the job's group is the only one that all_gather_object has."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    from rank_worker import store_address

    store = TCPStore(*store_address(), None, False, wait_for_workers=False)
    timeout = timedelta(seconds=SHORT_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)


def _other_group_of(transport: str) -> Callable[[], object] | None:
    def of_mpi() -> object:
        from mpi4py import MPI

        return MPI.COMM_WORLD.Dup()

    return of_mpi if transport == "mpi" else None
