"""Mutations of what messages are made of: values in a tree, whatever format writes them down."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from fuzz.byte_mutations import mutate_bytes

_MOST_NODES = 50_000
_MOST_NBYTES = 1 << 18
_INTS = (
    *(0, 1, 2, 3, 4, 7, 8, 9, 23, 24, 59, 60, 63, 64, 65, 100, 127, 128, 255, 256, 366, 999, 1000, 9999, 1 << 15),
    *((1 << 16) - 1, 1 << 16, 1_000_000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, (1 << 61) - 1),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
_TEXTS = (
    *("", "C", "F", "O", "|O", "|S3", "|V4", "<U2", "<i4", ">f8", "|b1", "|u1", "<f2", "<c16", "<M8[ns]", "<M8[9Y]"),
    *("<M8", "<i4,O", "float32", "bfloat16", "int64", "bool", "float8_e5m2", "float4_e2m1fn_x2", "load", "qint8"),
    *("cpu", "cuda", "meta", "UTC", "Europe/Berlin", "../../etc/passwd", "PosixPath", "PureWindowsPath", "a/b"),
    *("ndarray", "tensor", "memoryview", "bytes", "bytearray", "names", "formats", "offsets", "itemsize", "aligned"),
    *("B", "d", "\ud800", "x\0y", "fuzz.color", "fuzz.point", "fuzz.batch", "fuzz.flags", "RED", "x", "y"),
)


@dataclass
class Map:
    """The pairs of a mapping; keys may be there twice."""

    pairs: list[Any]
    """Lists of key and value."""


@dataclass
class Ext:
    """An extension: its code, and what its bytes hold."""

    code: int
    content: Any


@dataclass
class Prefixed:
    """A message behind a byte that is no message."""

    prefix: bytes
    content: Any


Donor = Callable[[], Any]
_Slot = tuple[Any, Any]
"""A place for a value: what holds it, and its index or attribute there."""


def slots(tree: Any) -> Iterator[_Slot]:
    """Every place for a value below the root."""
    stack = [tree]
    while stack:
        node = stack.pop()
        for key, child in _children(node):
            yield node, key
            stack.append(child)


def _children(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, list):
        return list(enumerate(node))
    if isinstance(node, Map):
        return list(enumerate(node.pairs))
    return [("content", node.content)] if isinstance(node, Ext | Prefixed) else []


def get(slot: _Slot) -> Any:
    """The value in a place."""
    node, key = slot
    return getattr(node, key) if isinstance(key, str) else (node.pairs if isinstance(node, Map) else node)[key]


def put(slot: _Slot, value: Any) -> None:
    """Puts a value into a place."""
    node, key = slot
    if isinstance(key, str):
        setattr(node, key, value)
    else:
        (node.pairs if isinstance(node, Map) else node)[key] = value


def mutate_tree(tree: Any, donor: Donor, rng: Random) -> Any:
    """Changes one place of a tree, or its root; `donor` gives a tree whose parts may be copied in."""
    places = list(slots(tree))
    if not places or rng.random() < 0.05:
        tree = _mutate(tree, donor, rng)
    else:
        slot = rng.choice(places)
        put(slot, _mutate(get(slot), donor, rng))
    return tree


def check_size(tree: Any) -> None:
    """Stops what has become too large.

    Raises:
        ValueError: The tree has.
    """
    nbytes = 0
    for number, slot in enumerate(slots(tree)):
        value = get(slot)
        nbytes += len(value) if isinstance(value, bytes | str) else 0
        if number > _MOST_NODES or nbytes > _MOST_NBYTES:
            raise ValueError("too large")


def _mutate(value: Any, donor: Donor, rng: Random) -> Any:
    draw = rng.random()
    if draw < 0.15:
        return _part_of(donor, rng)
    if draw < 0.22:
        return _wrapped(value, rng)
    if draw < 0.27:
        return _scalar(rng)
    mutation: Callable[[Any, Donor, Random], Any] = _MUTATIONS.get(type(value), _replaced)
    return mutation(value, donor, rng)


def _part_of(donor: Donor, rng: Random) -> Any:
    tree = donor()
    places = list(slots(tree))
    return get(rng.choice(places)) if places else tree


def _wrapped(value: Any, rng: Random) -> Any:
    for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 20, 110))):
        draw = rng.randrange(4)
        if draw == 0:
            value = [value]
        elif draw == 1:
            value = Map([[_scalar(rng), value]])
        else:
            value = Ext(rng.randrange(1, 30), [value] if draw == 2 else value)
    return value


def _scalar(rng: Random) -> Any:
    draw = rng.randrange(5)
    if draw == 0:
        return rng.choice((None, True, False, 0.0, -1.5, float("nan"), float("inf")))
    if draw == 1:
        return rng.choice(_TEXTS)
    if draw == 2:
        return rng.randbytes(rng.choice((0, 1, 2, 4, 8, 16, 33)))
    return _some_int(rng) if draw == 3 else rng.choice(([], Map([])))


def _some_int(rng: Random) -> int:
    number = rng.choice(_INTS) if rng.random() < 0.7 else rng.randrange(40)
    return -number if rng.random() < 0.3 else number


def _replaced(value: Any, donor: Donor, rng: Random) -> Any:
    return _scalar(rng)


def _mutate_int(value: int, donor: Donor, rng: Random) -> Any:
    return rng.choice((value + 1, value - 1, -value, value * 2, _some_int(rng), _some_int(rng)))


def _mutate_text(value: str, donor: Donor, rng: Random) -> Any:
    at = rng.randrange(len(value) + 1)
    changed = (
        *(value[:at], value[at:], value + value, value[:at] + chr(rng.randrange(1, 300)) + value[at + 1 :]),
        *(rng.choice(_TEXTS), rng.choice(_TEXTS), rng.choice(_TEXTS)),
    )
    return rng.choice(changed)


def _mutate_bytes(value: bytes, donor: Donor, rng: Random) -> Any:
    return mutate_bytes(value, rng)


def _mutate_list(value: list[Any], donor: Donor, rng: Random) -> Any:
    return _LIST_MUTATIONS[rng.randrange(len(_LIST_MUTATIONS))](value, donor, rng)


def _mutate_map(value: Map, donor: Donor, rng: Random) -> Any:
    value.pairs = [pair for pair in _mutate_list(value.pairs, donor, rng) if isinstance(pair, list) and len(pair) == 2]
    return value


def _mutate_ext(value: Ext, donor: Donor, rng: Random) -> Any:
    draw = rng.random()
    if draw < 0.3:
        return value.content
    code = rng.randrange(1, 30) if draw < 0.9 else rng.randrange(-128, 128)
    return Ext(code, value.content)


def _inserted(items: list[Any], donor: Donor, rng: Random) -> list[Any]:
    at = rng.randrange(len(items) + 1)
    return [*items[:at], _part_of(donor, rng) if rng.random() < 0.5 else _scalar(rng), *items[at:]]


def _dropped(items: list[Any], donor: Donor, rng: Random) -> list[Any]:
    at = rng.randrange(len(items) + 1)
    return items[:at] + items[at + 1 :]


def _doubled(items: list[Any], donor: Donor, rng: Random) -> list[Any]:
    at = rng.randrange(len(items) + 1)
    return items[:at] + items[at : at + 1] * rng.choice((2, 2, 2, 2, 2, 3, 17)) + items[at + 1 :]


def _shuffled(items: list[Any], donor: Donor, rng: Random) -> list[Any]:
    return rng.sample(items, len(items))


def _cut(items: list[Any], donor: Donor, rng: Random) -> list[Any]:
    return items[: rng.randrange(len(items) + 1)]


def _grown(items: list[Any], donor: Donor, rng: Random) -> list[Any]:
    return [*items, _scalar(rng)]


_LIST_MUTATIONS: tuple[Callable[[list[Any], Any, Random], list[Any]], ...] = (
    _inserted,
    _dropped,
    _doubled,
    _shuffled,
    _cut,
    _grown,
)
_MUTATIONS: dict[type, Callable[[Any, Any, Random], Any]] = {
    int: _mutate_int,
    str: _mutate_text,
    bytes: _mutate_bytes,
    list: _mutate_list,
    Map: _mutate_map,
    Ext: _mutate_ext,
}
