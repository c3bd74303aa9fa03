"""Cases 33-53: descriptors run out, processes fork, threads and groups cross, groups are rebuilt, results are kept."""

import os
import resource
import threading
from typing import Any

import numpy as np

from faults.case import MAIN, Case
from faults.scene import LONG_S, SHORT_S, VICTIM, Scene, until_it_fails
from faults.traces import Traces
from gather_core import ClosedError, Gatherer

_NUM_REBUILDS = 20
_NUM_KEPT = 20
_LARGE_NBYTES = 2 << 20
_LATE = ("TransportTimeoutError", "AbortedError")


def _no_descriptors(scene: Scene) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    scene.meet("here")
    scene.fault()
    if scene.is_victim:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), limits[1]))
    try:
        scene.gatherer()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _forked(scene: Scene) -> None:
    """The child may neither call nor close what is its parent's."""
    gatherer = scene.ready()
    scene.fault()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            gatherer.all_gather("child")
        except ClosedError:
            gatherer.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "the child was not refused"
    until_it_fails(gatherer)


def _two_threads(scene: Scene) -> None:
    gatherer = scene.ready()
    scene.fault()
    results: list[list[int]] = []

    def work() -> None:
        results.extend(gatherer.all_gather(scene.rank) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[*range(scene.world_size)]] * 40


def _closed_with_one_pending(scene: Scene) -> None:
    """The victim drops what it has begun, closes twice, and is refused; the others hear of it."""
    gatherer = scene.ready()
    if not scene.is_victim:
        scene.await_rank(VICTIM, "closed")
        until_it_fails(gatherer)
        return
    gatherer.all_gather_async(0, tag="nobody else comes")
    scene.fault()
    gatherer.close()
    gatherer.close()
    scene.say("closed")
    scene.gatherers.clear()
    gatherer.all_gather("after close")


def _crossed(scene: Scene) -> None:
    """Two Gatherers, of a group and of the world, in another order on one rank."""
    pair = scene.sub_group([0, 1])
    small = scene.gatherer(SHORT_S, group=pair) if scene.rank < 2 else None
    world = scene.ready(SHORT_S)
    scene.fault()
    if small is not None:
        first, second = (small, world) if scene.is_victim else (world, small)
        if scene.is_victim:
            scene.gatherers = [small]  # where it fails
            scene.to_close.append(world.close)
        first.all_gather(f"first of {scene.rank}")
        second.all_gather(f"second of {scene.rank}")
    else:
        world.all_gather("first of 2")


def _rebuilt(scene: Scene) -> None:
    """A rank dies; the others make a group of their own, again and again, and nothing grows."""
    gatherer = scene.ready(LONG_S)
    survivors = [0, 2]
    if scene.is_victim:
        scene.die()
    try:
        until_it_fails(gatherer)
    except Exception:  # which one: case 8
        gatherer.close()
    scene.gatherers.clear()
    group = scene.sub_group(survivors, use_local_synchronization=True)
    before = Traces()
    for number in range(_NUM_REBUILDS):
        with Gatherer(transport=scene.transport, group=group, timeout_s=LONG_S) as new:
            assert new.all_gather((number, scene.rank)) == [(number, rank) for rank in survivors]
        if number == 0:
            before = Traces.now()
    left = before.left()
    assert left == Traces(), left


def _far_along(scene: Scene) -> None:
    """Numbers of operations beyond 32 bits."""
    gatherer = scene.ready()
    gatherer._membership.rounds.seq = 2**32 - 5
    scene.fault()
    until_it_fails(gatherer, times=10)


def _kept(scene: Scene) -> None:
    """Results are kept and written to while more come and others go, and one more rank looks at them: a child."""
    gatherer = scene.ready()
    scene.fault()
    kept: list[tuple[int, Any]] = []
    for number in range(_NUM_KEPT):
        kept.append((number, gatherer.all_gather(_numbers(scene.rank, number))))
        kept[-1][1][number % scene.world_size][:] = -number
        if number % 5 == 4:
            del kept[::2]
    forks = scene.transport in ("gloo", "shm", "shm+gloo")
    child = os.fork() if forks else None
    if child == 0:
        os._exit(0 if all(_is_as_kept(scene, *each) for each in kept) else 1)
    for number in range(8):
        gatherer.all_gather(_numbers(scene.rank, 1000 + number))
    assert all(_is_as_kept(scene, *each) for each in kept), "a result has changed"
    assert child is None or os.waitpid(child, 0)[1] == 0, "a child found another result"


def _numbers(rank: int, number: int) -> Any:
    return np.arange(_LARGE_NBYTES // 8) * (rank + 1) + number


def _is_as_kept(scene: Scene, number: int, result: Any) -> bool:
    changed = number % scene.world_size
    return all(
        (array == (-number if rank == changed else _numbers(rank, number))).all() for rank, array in enumerate(result)
    )


CASES = [
    Case(33, "no descriptor is left", _no_descriptors, ("SetupError",), "none", transports=MAIN),
    Case(38, "a fork after the start", _forked, (), "goes on", transports=MAIN),
    Case(39, "two threads at once", _two_threads, (), "goes on", transports=MAIN),
    Case(
        40,
        "closed while one is pending",
        _closed_with_one_pending,
        ("AbortedError", "PeerLostError", "DesyncError"),  # the last where what was pending had been sent already
        victim=("ClosedError",),
        transports=MAIN,
    ),
    Case(41, "two groups in crossed order", _crossed, _LATE, waits_s=SHORT_S, transports=MAIN, named=()),
    Case(43, "20 new groups after a kill", _rebuilt, (), "none", dies=(1,), waits_s=30.0, transports=MAIN),
    Case(50, "operations around number 2^32", _far_along, (), "goes on", transports=MAIN),
    Case(53, "results are kept, changed and forked", _kept, (), "goes on"),
]
