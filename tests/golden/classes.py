"""Classes and functions that golden frames hold by name or by tag: never move or change one."""

import contextlib
import dataclasses
import enum
from collections.abc import Iterator
from typing import Any, NamedTuple

from gather_codecs import message_registry
from gather_codecs.message_registry import RegisteredTypes, register_type


class Point(NamedTuple):
    """A namedtuple."""

    x: object
    y: object = 0


class Color(enum.Enum):
    """An Enum whose values are of several types."""

    RED = 1
    BLUE = "blue"


class Mode(enum.Flag):
    """A Flag."""

    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Row:
    """A dataclass."""

    ids: list[int]
    note: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    """A dataclass without a `__dict__`."""

    key: str
    value: object


class Batch:
    """An ordinary class, which msgpack is told how to take apart."""

    def __init__(self, ids: object, note: object) -> None:
        self.ids = ids
        self.note = note


def double(number: int) -> int:
    """A function that pickle holds by name."""
    return 2 * number


def _parts_of_batch(batch: Batch) -> tuple[object, object]:
    return batch.ids, batch.note


def _batch_of_parts(parts: Any) -> Batch:
    return Batch(*parts)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Inside, exactly these classes are registered with msgpack."""
    before = message_registry._types
    message_registry._types = RegisteredTypes()
    try:
        for tag, cls in {"point": Point, "color": Color, "mode": Mode, "row": Row, "frozen": Frozen}.items():
            register_type(tag, cls)
        register_type("batch", Batch, to=_parts_of_batch, from_=_batch_of_parts)
        yield
    finally:
        message_registry._types = before
