"""What counts as the same object in tests of codecs, and where the first difference is."""

import collections
import dataclasses
import datetime as dt
import math
import re
import struct
from decimal import Decimal
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fresh_python import run_python
from gather_core.exactness import difference, scramble


class Point(NamedTuple):
    x: object


@dataclasses.dataclass
class Record:
    x: object


class Slots:
    __slots__ = ("x",)

    def __init__(self, x: object) -> None:
        self.x = x


class Opaque:
    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("cannot be copied")


class Caching:
    """Copies do without what it has computed."""

    def __init__(self, x: object, cached: object) -> None:
        self.x, self.cached = x, cached

    def __getstate__(self) -> object:
        return {"x": self.x}


class TaggedList(list[object]):
    def __init__(self, tag: object) -> None:
        self.tag = tag


def _cycle(last: object) -> list[object]:
    cycle: list[object] = [1]
    cycle += [cycle, last]
    return cycle


OTHER_NAN = struct.unpack("<d", b"\x01\0\0\0\0\0\xf8\x7f")[0]
TAGGED = torch.zeros(2)
TAGGED.tag = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("was", "now", "text"),
    [
        *((1, True, "$: int became bool"), (1, 1.0, "$: int became float"), (1, 2, "$: 1 became 2")),
        *((0.0, -0.0, "$: 0.0 became -0.0"), (math.nan, OTHER_NAN, "$: nan became nan"), (0j, complex(0, -0.0), "$: ")),
        *(((1,), [1], "$: tuple became list"), ([[1], [2, "x"]], [[1], [2, "y"]], "$[1][1]: 'x' became 'y'")),
        *(([1], [], "1 items became 0"), (_cycle(1), _cycle(2), "$[2]: 1 became 2")),
        *(({"a": 1, "b": 2}, {"b": 2, "a": 1}, "in order"), ({1: "a"}, {True: "a"}, "int became bool")),
        *(({1}, {True}, "the item 1 is missing"), ({1}, {1, 2}, "1 items became 2"), ({None}, {0}, "None is missing")),
        *((collections.OrderedDict(a=1), {"a": 1}, "became dict"), (Point(1), Point(1.0), "$[0]: int became float")),
        *((Record(1), Record(1.0), "__dict__"), (Decimal("1.50"), Decimal("1.5"), "became")),
        *((dt.time(2, fold=1), dt.time(2), "became"), (Opaque(), Opaque(), "override `same`"), (len, print, "became")),
        *((np.zeros(2), np.zeros(2, "f4"), "float32"), (np.zeros(2), np.zeros((1, 2)), "(1, 2)")),
        *((np.zeros(2), -np.zeros(2), "elements"), (np.array([1], object), np.array([1.0], object), "$[0]: int")),
        (np.arange(2, dtype=">i4"), np.arange(2, dtype="<i4"), "an array of"),
        (np.float64(0), np.float64(-0.0), "became"),
        *((torch.zeros(2), -torch.zeros(2), "elements"), (torch.zeros(2), torch.zeros(2).bfloat16(), "bfloat16")),
        *((torch.zeros(2, requires_grad=True), torch.zeros(2), "requires_grad"), (TAGGED, torch.zeros(2), "__dict__")),
        *((torch.zeros(2), torch.zeros(1, 2), "(1, 2)"), (torch.eye(2), torch.eye(2).to_sparse(), "sparse")),
        *((Slots(1), Slots(True), "as pickled[2][1]"), (Caching(1, 2), Caching(3, 2), "1 became 3")),
        (collections.defaultdict(int), collections.defaultdict(list), "$.default_factory: <class 'int'> became"),
        (collections.deque([1], 2), collections.deque([1], 3), "as pickled[1][1]: 2 became 3"),
        *((TaggedList(1), TaggedList(2), ".__dict__"), ({1: 2}, {True: 2}, "int became bool")),
        *((PureWindowsPath("A"), PureWindowsPath("a"), "became"), (PureWindowsPath("a"), PurePosixPath("a"), "became")),
        *((memoryview(b"x"), memoryview(bytearray(b"x")), "memoryview"), (bytearray(b"x"), bytearray(b"y"), "became")),
    ],
    ids=str,
)
def test_what_differs_is_found_and_named(was: object, now: object, text: str) -> None:
    assert re.search(re.escape(text), difference(now, was) or "the same")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        *((_cycle(1), _cycle(1)), (math.nan, float("nan")), ([Decimal("sNaN")], [Decimal("sNaN")])),
        *(({math.nan, None}, {None, float("nan")}), (ValueError("x"), ValueError("x")), (int, int), (len, len)),
        (torch.eye(2).to_sparse(), torch.eye(2).to_sparse()),
        (torch.ones(3, requires_grad=True) * 2, torch.ones(3) * 2),
        *((torch.arange(5)[::2][:1], torch.arange(1)), (torch.tensor([1j]).conj(), torch.tensor([complex(0, -1)]))),
        *((np.array(["a", None], object), np.array(["a", None], object)), (np.arange(4)[::2], np.array([0, 2]))),
        *((Slots(math.nan), Slots(float("nan"))), (Caching(1, 2), Caching(1, 3))),
        *((collections.deque([math.nan]), collections.deque([float("nan")])), ({(1, math.nan)}, {(1, float("nan"))})),
        (PurePosixPath("a", "..", "b"), PurePosixPath("a/../b")),
        *((memoryview(b"x"), memoryview(b"x")), (Record({1: [Record(math.nan)]}), Record({1: [Record(float("nan"))]}))),
    ],
    ids=str,
)
def test_what_is_the_same_is_the_same(a: object, b: object) -> None:
    assert difference(a, b) is None


def _shared(last: object, wrap: Any) -> object:
    """40 levels, and a trillion paths through them."""
    shared = last
    for _ in range(40):
        shared = wrap([shared, (shared,)])
    return shared


@pytest.mark.parametrize("wrap", [list, tuple, frozenset])
def test_what_is_shared_is_compared_once(wrap: Any) -> None:
    assert difference(_shared(1, wrap), _shared(1, wrap)) is None
    if wrap is not frozenset:
        assert difference(_shared(1, wrap), _shared(2, wrap))


def test_an_object_that_is_made_only_to_be_compared_is_not_mistaken_for_a_later_one() -> None:
    many = [collections.deque([number]) for number in range(1000)]
    others = [collections.deque([number]) for number in (*range(999), 0)]
    assert difference(many, others) == "$[999] as pickled[3][0]: 0 became 999"


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: [1], lambda: {"a": 1}, lambda: {1}, lambda: bytearray(b"\0x"), lambda: memoryview(bytearray(3))),
        *(lambda: np.zeros(3), lambda: torch.zeros(2, 2), lambda: ((np.zeros((2, 2)).T,),), lambda: Record([0])),
        *(lambda: np.array(5.0), lambda: torch.tensor(1.0).bfloat16(), lambda: torch.zeros(3, requires_grad=True)),
    ],
)
def test_whatever_can_be_changed_is_changed_by_scrambling(make: Any) -> None:
    obj = make()
    scramble(obj)
    assert difference(obj, make())


def test_comparing_plain_data_imports_neither_numpy_nor_torch() -> None:
    script = (
        "import sys; from gather_core.exactness import difference\n"
        "assert difference([1, {2.5}], [1, {2.5}]) is None\nprint(*{'numpy', 'torch'} & set(sys.modules))"
    )
    assert run_python(script) == ""


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:.*quantized")
def test_quantized_tensors_are_their_integers_and_what_makes_numbers_of_them() -> None:
    def quantized(integer: int, scale: float, zero_point: int) -> torch.Tensor:
        return torch._make_per_tensor_quantized_tensor(torch.tensor([integer], dtype=torch.int32), scale, zero_point)

    def by_channel(scale: float) -> torch.Tensor:
        return torch.quantize_per_channel(torch.ones(2, 2), torch.tensor([1.0, scale]), torch.zeros(2), 0, torch.qint8)

    assert difference(quantized(2, 1.0, 0), quantized(2, 1.0, 0)) is None
    assert difference(by_channel(2.0), by_channel(2.0)) is None
    assert "elements" in (difference(quantized(2**24 + 1, 1.0, 0), quantized(2**24, 1.0, 0)) or "")
    for changed in (quantized(1, 2.0, 0), quantized(3, 1.0, 1)):
        assert "quantized by" in (difference(changed, quantized(2, 1.0, 0)) or "")
    assert "quantized by" in (difference(by_channel(3.0), by_channel(2.0)) or "")
