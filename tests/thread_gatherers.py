"""Gatherers whose ranks are threads of this process, and what their tests share."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from gather_core import Codec, Frames, Gatherer, SetupError, Transport
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport

T = TypeVar("T")


class FixedSlots(ThreadsTransport):
    """Whose slots are not elastic, so that there is a round 2."""

    capabilities = replace(ThreadsTransport.capabilities, elastic_slots=False)


def on_gatherers(
    world_size: int,
    body: Callable[[Gatherer], T],
    make_transport: Callable[[], Transport] = ThreadsTransport,
    **settings: Any,
) -> list[T]:
    """Runs `body` with a Gatherer on every rank; raises what any of them raised."""

    def run_rank(member: ThreadRank) -> list[T]:
        with Gatherer(transport=make_transport(), group=member, **{"timeout_s": 10, **settings}) as gatherer:
            return [body(gatherer)]

    returned: list[T] = []
    for outcome in ThreadGroup(world_size).run(run_rank):
        if isinstance(outcome, BaseException):
            raise outcome
        returned += outcome
    return returned


def caught(call: Callable[..., object], *args: object) -> BaseException:
    """What a call raises."""
    try:
        result = call(*args)
    except BaseException as exc:
        return exc
    raise AssertionError(f"it returned {result!r}")


class FramesCodec(Codec):
    """The object is the frames; decoding copies them."""

    name = "frames-in-test"

    def encode(self, obj: object) -> Frames:
        return obj  # type: ignore[return-value]

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        assert all(frame.readonly and frame.format == "B" and frame.contiguous for frame in frames)
        return [bytes(frame) for frame in frames]


def texts(outcomes: Sequence[object]) -> set[str]:
    """What the setup errors say that each rank raised; one text where all agree."""
    assert all(isinstance(outcome, SetupError) for outcome in outcomes), outcomes
    return {str(outcome) for outcome in outcomes}
