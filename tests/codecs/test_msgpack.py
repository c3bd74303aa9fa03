"""MessagePackCodec: what comes back exactly, and what is refused with its path.

Numbers in comments and docstrings are those of plan.toml.
"""

import collections
import dataclasses
import datetime as dt
import enum
import io
import struct
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gather_codecs.messagepack import MessagePackCodec
from gather_core.codec import Trust
from gather_core.errors import EncodeError

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
BERLIN = ZoneInfo("Europe/Berlin")
CODEC = MessagePackCodec()


class Point(NamedTuple):
    x: int


class Color(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Record:
    x: int = 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "obj",
    [
        *(None, True, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1, 2**4000, -(2**4000)),
        *(0.0, -0.0, float("inf"), float("nan"), struct.unpack("<d", b"\x01\0\0\0\0\0\xf8\x7f")[0], complex("nan-0j")),
        *("", "\0é𝄞", "\ud800x", b"", b"x", bytearray(b"x"), bytearray(), b"x" * 5000, bytearray(5000)),
        *([], (), {}, set(), frozenset(), [1, (2, [3, (4, {5})])], ((), [()], {(): ()}), {1, (2, frozenset({3}))}),
        {1: "int", "1": "str", (1, 2): "tuple", None: 0, b"k": 0, 2.5: 0, frozenset({1}): 0, 1j: 0, 2**70: 0},
        *({True: 1}, {1: 1}, {"z": 1, "a": 2}, [2**70, {"n": 2**70}], {2**70, 1}),
        *(dt.datetime(1, 1, 1), dt.datetime.max, dt.datetime(2020, 5, 17, 1, 2, 3, 4, dt.UTC)),
        *(dt.datetime(2020, 5, 17, tzinfo=IST), dt.datetime(2020, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)),
        *(dt.time(1, 2, 3, 4, IST), dt.time(2, fold=1), dt.date(9999, 12, 31), dt.timedelta(-1, 5, 7)),
        *(Decimal("1.50"), Decimal("-0"), Decimal("NaN123"), Decimal("sNaN"), Decimal("1E+400"), uuid.UUID(int=7)),
        *([["tuple", 1], [1, 2], [-1, b""]], [msgpack.packb(1), [20, b""]]),
    ],
    ids=lambda obj: f"{type(obj).__name__} {obj!a:.30}",
)
@pytest.mark.plan(1, 2, 3, 4, 5, 6, 7, 8, 12)
def test_every_type_comes_back_exactly(roundtrip: Any, assert_same: Any, obj: object) -> None:
    """1 (scalars), 2 (nan, -0.0), 3 (keys), 4 (tuples), 5 (sets), 6 (text), 7 (times), 8 (bytes), 12 (imitations)."""
    back = roundtrip(CODEC, obj)
    assert_same(back, obj)
    if isinstance(obj, dt.datetime | dt.time):
        assert (back.fold, type(back.tzinfo)) == (obj.fold, type(obj.tzinfo))


@pytest.mark.parametrize("count", [3, 2000])
@pytest.mark.parametrize("code", ["?", "i1", "u8", ">i4", "f2", "f4", "c16", "M8[ns]", "M8[25s]", "m8[D]", "M8"])
@pytest.mark.plan(14, 17)
def test_arrays_of_every_dtype_come_back_writable(roundtrip: Any, assert_same: Any, code: str, count: int) -> None:
    array = np.arange(count).astype("i8").astype(code)
    back = roundtrip(CODEC, array)
    assert_same(back, array)
    assert back.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        *(np.arange(5000)[::-2], np.zeros((0, 3)), np.array(5.0), np.broadcast_to(np.arange(3), (500, 3))),
        *(np.arange(6).reshape(2, 3).T, np.array("NaT", "M8[ns]"), np.zeros((0, 2**40), "i1")),
    ],
)
@pytest.mark.plan(15, 16, 20)
def test_arrays_of_every_layout_come_back(roundtrip: Any, assert_same: Any, array: np.ndarray[Any, Any]) -> None:
    back = roundtrip(CODEC, array)
    assert_same(back, array)
    assert back.flags.f_contiguous or not array.flags.f_contiguous


@pytest.mark.parametrize("scalar", [np.float64(1.5), np.float32("nan"), np.int8(-1), np.bool_(True), np.complex64(1j)])
@pytest.mark.plan(21)
def test_numpy_scalars_stay_numpy_scalars(roundtrip: Any, assert_same: Any, scalar: np.generic) -> None:
    """21."""
    assert_same(roundtrip(CODEC, [scalar, {scalar: 1}]), [scalar, {scalar: 1}])


@pytest.mark.parametrize(
    "tensor",
    [
        *(torch.arange(12.0).view(3, 4).t(), torch.randn(5000).bfloat16(), torch.zeros(0, 3), torch.tensor(True)),
        *(torch.randn(50, 50).to(torch.float8_e4m3fn), torch.ones(3, requires_grad=True), torch.tensor([1j]).conj()),
        torch.ones(3, requires_grad=True) * 2,
    ],
)
@pytest.mark.plan(14, 15, 16, 22)
def test_tensors_come_back(roundtrip: Any, assert_same: Any, tensor: torch.Tensor) -> None:
    back = roundtrip(CODEC, [tensor])
    assert_same(back, [tensor])
    back[0].detach().fill_(0)


def test_large_elements_are_frames_of_their_own_that_are_not_copied() -> None:
    array = np.zeros(1024, np.uint8)
    head, frame = CODEC.encode([array, np.zeros(1023, np.uint8)])
    array[0] = 7
    assert frame[0] == 7
    assert len(head) < 1200
    assert sum(len(frame) for frame in CODEC.encode(torch.zeros(1_000_000)[:3])) < 100


@pytest.mark.parametrize(
    "bad",
    [
        *(collections.defaultdict(int), Point(1), Color.RED, Record(), Text("x")),
        *(memoryview(b"x"), msgpack.ExtType(1, b""), msgpack.Timestamp(1), object(), Point, ...),
        *(
            np.array([None]),
            np.zeros(2, [("a", "i4"), ("b", "O")]),
            np.longdouble(1),
            np.longlong(1),
        ),
        *(torch.nn.Parameter(torch.ones(1)), torch.eye(2).to_sparse(), torch.empty(1, device="meta"), np.dtype("O")),
        *(dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "Z")), np.ma.array([1]), np.datetime64),
    ],
    ids=lambda bad: type(bad).__name__,
)
@pytest.mark.plan(8, 9, 11, 17, 24)
def test_what_it_cannot_keep_is_refused_with_its_path(bad: object) -> None:
    """8 (memoryview), 9 (subclasses), 11 (ExtType), 17 (object arrays), 24 (odd tensors)."""
    with pytest.raises(EncodeError, match=r"\$\.batch\[3\]\.meta\['a b'\]: .*"):
        CODEC.encode({"batch": [1, 2, (3,), {"meta": {"x": 1, "a b": bad}}]})


def test_cycles_and_keys_are_refused_with_their_path() -> None:
    cycle: dict[str, Any] = {"a": []}
    cycle["a"].append(cycle)
    with pytest.raises(EncodeError, match=r"\$(\.a)?: .*in a cycle"):
        CODEC.encode(cycle)
    with pytest.raises(EncodeError, match=r"\$\.a\[key of <Point>\]"):
        CODEC.encode({"a": {Point(1): 1}})


def test_keys_with_the_same_bytes_that_are_not_equal_come_back(roundtrip: Any) -> None:
    nan = float("nan")
    for keys in ([nan, -nan, float("nan")], [(nan,), (float("nan"),)]):
        back = roundtrip(CODEC, dict.fromkeys(keys, 1))
        assert len(back) == len(keys)
        assert repr(list(back)) == repr(keys)


def test_a_tensor_with_attributes_is_refused() -> None:
    tensor = torch.zeros(1)
    tensor.tag = 1  # type: ignore[attr-defined]
    with pytest.raises(EncodeError, match=r"\$\[0\]"):
        CODEC.encode([tensor])


def test_a_leaf_with_a_gradient_is_refused_with_its_path() -> None:
    leaf = torch.ones(3, requires_grad=True)
    leaf.grad = torch.zeros(3)
    with pytest.raises(EncodeError, match=r"\$\.a\[0\]: .*\.grad"):
        CODEC.encode({"a": [leaf]})
    CODEC.encode({"a": [leaf.detach(), leaf * 2, leaf.grad]})


def _from_file(key: str | None) -> ZoneInfo:
    # A version 1 file: no transitions, one type, UTC.
    head = b"TZif" + bytes(16) + struct.pack(">6I", 0, 0, 0, 0, 1, 4)
    return ZoneInfo.from_file(io.BytesIO(head + bytes(6) + b"UTC\0"), key=key)


@pytest.mark.parametrize(
    "zone",
    [
        *(ZoneInfo.no_cache("Europe/Berlin"), _from_file(None), _from_file("Europe/Berlin"), _from_file("../x")),
        *(_from_file("no such zone"), _from_file("Europe")),
    ],
    ids=["no cache", "file", "file with the name of a zone", "file outside", "file of no zone", "folder"],
)
def test_a_zone_that_its_name_does_not_give_is_refused(zone: ZoneInfo) -> None:
    with pytest.raises(EncodeError, match=r"\$\[0\]: its time zone"):
        CODEC.encode([dt.datetime(2020, 1, 1, tzinfo=zone)])


def test_datetimes_of_one_zone_still_share_it_when_they_come_back(roundtrip: Any) -> None:
    zone = ZoneInfo("Pacific/Chatham")
    back = roundtrip(CODEC, [dt.datetime(2020, 1, 1, tzinfo=zone), dt.time(1, tzinfo=zone)])
    assert back[0].tzinfo is back[1].tzinfo is zone


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {"k": x}])
def test_a_hundred_levels_come_back(roundtrip: Any, wrap: Callable[[Any], Any]) -> None:
    obj: Any = 1
    for _ in range(100):
        obj = wrap(obj)
    assert roundtrip(CODEC, obj) == obj


def test_it_declares_that_it_only_builds_data() -> None:
    assert CODEC.trust is Trust.DATA
    assert CODEC.spec == CODEC.fingerprint() == "msgpack"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers()
    | st.datetimes()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
)
KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text()) | st.frozensets(st.integers(), max_size=1)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner)))
def test_any_nesting_comes_back(obj: object) -> None:
    back = CODEC.decode([memoryview(frame) for frame in CODEC.encode(obj)])
    assert repr(back) == repr(obj)
