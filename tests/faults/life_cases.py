"""Cases 8-13: a rank is killed, stopped, or slow."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from faults.case import PROCESSES, Case
from faults.scene import LONG_S, SHORT_S, Scene, until_it_fails, wrap
from gather_core import Gatherer, TransportError

_LARGE_NBYTES = 24 << 20
_LOST = ("PeerLostError", "AbortedError")
_LATE = ("TransportTimeoutError", "AbortedError")
_OLD_TIMEOUT_S, _OLD_STOPPED_S = 1.0, 2.6  # the others time out, ask each other, and begin anew meanwhile
_ANY = ("PeerLostError", "AbortedError", "TransportTimeoutError")


def _killed_before_round_1(scene: Scene) -> None:
    gatherer = scene.ready(LONG_S)
    if scene.is_victim:
        scene.die()
    until_it_fails(gatherer)


def _killed_after_it_has_sent(scene: Scene) -> None:
    gatherer = scene.ready(LONG_S)
    if scene.is_victim:
        wrap(gatherer.transport, "all_gather_slots", _then_die(scene))
    until_it_fails(gatherer)


def _then_die(scene: Scene) -> Callable[..., object]:
    def dying(call: Callable[..., object], *args: Any, **options: Any) -> None:
        call(*args, **options)
        scene.die()

    return dying


def _killed_in_the_middle_of_a_large_payload(scene: Scene) -> None:
    gatherer = scene.ready(LONG_S, transport=_MIDDLE[scene.transport][0])
    if scene.is_victim:
        thing, verb = gatherer.transport, _MIDDLE[scene.transport][1]
        if scene.transport == "shm+gloo":
            thing = vars(gatherer.transport)["_inner"]
        wrap(thing, verb, _at(_MIDDLE[scene.transport][2], scene.die))
    until_it_fails(gatherer, bytes(_LARGE_NBYTES))


_MIDDLE = {
    "gloo": ("gloo:chunk_nbytes=1048576", "_perform", 3),  # round 1, then chunks
    "mpi": ("mpi:chunk_nbytes=1048576", "_all_gather_in_place", 2),
    "shm+gloo": ("shm+gloo", "all_gather_slots", 5),
    "shm": ("shm", "all_gather_slots", 1),  # it has written everything, and said so to nobody
}
"""The transport, which of its methods a large payload goes through, and the call at which the rank dies."""


def _at(number: int, happens: Callable[[], None]) -> Callable[..., object]:
    """Before the call of that number."""
    calls = 0

    def counted(call: Callable[..., object], *args: Any, **options: Any) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            happens()
        return call(*args, **options)

    return counted


def _stopped(seconds: float) -> Callable[[Scene], object]:
    def act(scene: Scene) -> None:
        gatherer = scene.ready(SHORT_S)
        if scene.is_victim:
            wrap(gatherer.transport, "all_gather_slots", _at(1, lambda: scene.stop(seconds)))
        until_it_fails(gatherer)

    return act


def _slow(seconds: float) -> Callable[[Scene], object]:
    def act(scene: Scene) -> None:
        gatherer = scene.ready(SHORT_S)
        scene.fault()
        if scene.is_victim:
            time.sleep(seconds)
        until_it_fails(gatherer)

    return act


def _late_bytes(scene: Scene) -> None:
    """All ranks go on to a new Gatherer while one is still stopped in an exchange of the old one."""
    old = scene.ready(_OLD_TIMEOUT_S)
    scene.gatherers.clear()
    if scene.is_victim:
        wrap(old.transport, "all_gather_slots", _at(1, lambda: scene.stop(_OLD_STOPPED_S)))
    _check_that_it_fails(old)
    new = scene.gatherer(LONG_S)
    until_it_fails(new, "new")
    old.close()
    until_it_fails(new, "newer")


def _check_that_it_fails(gatherer: Gatherer) -> None:
    try:
        until_it_fails(gatherer, "old")
    except TransportError:
        return
    raise AssertionError("nobody was missed")


def _all_killed(scene: Scene) -> None:
    gatherer = scene.ready(LONG_S)
    gatherer.all_gather(bytes(3 << 20))
    os.kill(os.getpid(), signal.SIGKILL)


_KILLS = [
    (8, "SIGKILL before round 1", _killed_before_round_1),
    (9, "SIGKILL when it has sent, and read nothing", _killed_after_it_has_sent),
]


def _killed(number: int, name: str, act: Callable[[Scene], object]) -> list[Case]:
    transports = tuple(name for name in PROCESSES if name != "mpi")
    return [
        Case(number, name, act, _ANY if number == 9 else _LOST, dies=(1,), transports=transports),
        Case(number, name, act, dies=(0, 1, 2), transports=("mpi",)),
    ]


CASES = [
    *(case for kill in _KILLS for case in _killed(*kill)),
    Case(
        10,
        "SIGKILL inside a large payload",
        _killed_in_the_middle_of_a_large_payload,
        _LOST,
        dies=(1,),
        transports=("gloo", "shm", "shm+gloo"),
    ),
    Case(
        10,
        "SIGKILL inside a large payload",
        _killed_in_the_middle_of_a_large_payload,
        dies=(0, 1, 2),
        transports=("mpi",),
    ),
    Case(
        11,
        "SIGSTOP for 2 timeouts",
        _stopped(2 * SHORT_S),
        _LATE,
        waits_s=SHORT_S,
        transports=PROCESSES,
        victim=_ANY,
    ),
    Case(
        11,
        "SIGSTOP, then a new Gatherer",
        _late_bytes,
        (),
        "goes on",
        waits_s=_OLD_STOPPED_S,
        transports=tuple(name for name in PROCESSES if name != "all_gather_object"),
    ),
    Case(
        12,
        "SIGSTOP for half a timeout",
        _stopped(SHORT_S / 2),
        (),
        "goes on",
        waits_s=SHORT_S / 2,
        transports=PROCESSES,
    ),
    Case(13, "slow, by 0.7 timeouts", _slow(0.7 * SHORT_S), (), "goes on", waits_s=0.7 * SHORT_S),
    Case(13, "slow, by 1.4 timeouts", _slow(1.4 * SHORT_S), _LATE, waits_s=SHORT_S, victim=_ANY),
    Case(34, "SIGKILL of all ranks", _all_killed, dies=(0, 1, 2), transports=("gloo", "shm", "shm+gloo")),
]
