"""Cases 14-19: ranks that are out of step, or do not agree from the start."""

from collections.abc import Callable
from typing import Any

from faults.case import Case
from faults.scene import LONG_S, SHORT_S, Scene

_SETUP = ("SetupError",)
_OUT_OF_STEP = ("DesyncError", "AbortedError")


def _one_operation_too_many(scene: Scene) -> None:
    gatherer = scene.ready(_timeout_s(scene))
    scene.fault()
    if scene.is_victim:
        gatherer.all_gather(0, tag="train")
    gatherer.all_gather(0, tag="train")
    gatherer.all_gather(0, tag="eval")


def _one_operation_less(scene: Scene) -> None:
    gatherer = scene.ready(_timeout_s(scene))
    scene.fault()
    if not scene.is_victim:
        gatherer.all_gather(0, tag="train")
    gatherer.all_gather(0, tag="eval")


def _another_operation(scene: Scene) -> None:
    gatherer = scene.ready(_timeout_s(scene))
    scene.fault()
    if scene.is_victim:
        gatherer.gather(0)
    gatherer.all_gather(0)


def _other_settings(**settings: Any) -> Callable[[Scene], object]:
    def act(scene: Scene) -> None:
        scene.fault()
        scene.gatherer(LONG_S, **(settings if scene.is_victim else {}))

    return act


def _make_another_group(scene: Scene) -> None:
    """And its first Gatherer, so that there is nothing left to connect."""
    scene.other = scene.make_other_group()
    scene.gatherer(LONG_S, group=scene.other).close()


def _another_group(scene: Scene) -> None:
    scene.fault()
    scene.gatherer(SHORT_S, **({"group": scene.other} if scene.is_victim else {}))


def _timeout_s(scene: Scene) -> float:
    return SHORT_S if scene.transport == "all_gather_object" else LONG_S


CASES = [
    Case(14, "one operation too many", _one_operation_too_many, _OUT_OF_STEP),
    Case(15, "one operation less", _one_operation_less, _OUT_OF_STEP),
    Case(16, "another operation", _another_operation, _OUT_OF_STEP),
    Case(17, "another codec", _other_settings(codec="msgpack"), _SETUP, "none"),
    Case(18, "another slot size", _other_settings(slot_nbytes=4096), _SETUP, "none"),
    Case(19, "another group", _another_group, _SETUP, "none", waits_s=SHORT_S, prepare=_make_another_group),
]
