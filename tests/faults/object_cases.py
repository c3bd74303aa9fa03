"""Cases 1-7: an object cannot be encoded, a rank is interrupted."""

from collections.abc import Callable
from typing import Any

from faults.case import PROCESSES, Case
from faults.objects import Bomb, UglyError
from faults.scene import SHORT_S, Scene, until_it_fails, wrap

_LONG_TEXT = "x" * 10_000_000 + "\udcff"
_LARGE_NBYTES = 8 << 20


def _cannot_encode(make: Callable[[int], object], *ranks: int, **settings: Any) -> Callable[[Scene], object]:
    def act(scene: Scene) -> object:
        gatherer = scene.ready(**settings)
        scene.fault()
        return gatherer.all_gather(make(scene.rank) if scene.rank in ranks else "fine")

    return act


def _interrupted_before_round_1(scene: Scene) -> None:
    gatherer = scene.ready(_timeout_s(scene))
    scene.fault()
    until_it_fails(gatherer, Bomb(KeyboardInterrupt("stop")) if scene.is_victim else "fine")


def _interrupted_after_round_1(scene: Scene) -> None:
    gatherer = scene.ready(_timeout_s(scene), slot_nbytes=16384)
    if scene.is_victim:
        wrap(gatherer.transport, "all_gather_slots", _then_interrupt(scene))
    until_it_fails(gatherer, bytes(_LARGE_NBYTES))


def _then_interrupt(scene: Scene) -> Callable[..., object]:
    def interrupted(call: Callable[..., object], *args: Any, **options: Any) -> object:
        call(*args, **options)
        scene.fault()
        raise KeyboardInterrupt("stop")

    return interrupted


def _timeout_s(scene: Scene) -> float:
    """On the job's own group nothing but the timeout ends what is pending."""
    return SHORT_S if scene.transport == "all_gather_object" else 30.0


_REMOTE = ("RemoteEncodeError",)
_ALL_BUT_TORCH = tuple(name for name in (*PROCESSES, "threads") if name != "all_gather_object")


def _interrupts(number: int, name: str, act: Callable[[Scene], object]) -> list[Case]:
    heard = Case(number, name, act, ("AbortedError",), victim=("KeyboardInterrupt",), transports=_ALL_BUT_TORCH)
    at_the_timeout = Case(
        number,
        name,
        act,
        ("AbortedError", "TransportTimeoutError", "PeerLostError"),
        victim=("KeyboardInterrupt",),
        waits_s=SHORT_S,
        transports=("all_gather_object",),
    )
    return [heard, at_the_timeout]


CASES = [
    Case(1, "encode raises on one rank", _cannot_encode(lambda _: Bomb(KeyError("lost")), 1), _REMOTE, "goes on"),
    Case(
        2,
        "encode raises on two ranks, differently",
        _cannot_encode(lambda rank: Bomb(KeyError("a") if rank else OSError("b")), 0, 1),
        _REMOTE,
        "goes on",
        named=(0, 1),
    ),
    Case(3, "what pickle does not take", _cannot_encode(lambda _: lambda: 0, 1), _REMOTE, "goes on"),
    Case(
        3,
        "what msgpack does not take",
        _cannot_encode(lambda _: object(), 1, codec="msgpack"),
        _REMOTE,
        "goes on",
    ),
    Case(4, "an exception without a text", _cannot_encode(lambda _: Bomb(UglyError()), 1), _REMOTE, "goes on"),
    Case(
        5,
        "10 MB of error text, not UTF-8",
        _cannot_encode(lambda _: Bomb(ValueError(_LONG_TEXT)), 1),
        _REMOTE,
        "goes on",
    ),
    *_interrupts(6, "Ctrl-C before round 1", _interrupted_before_round_1),
    *_interrupts(7, "Ctrl-C between the rounds", _interrupted_after_round_1),
]
