"""MessagePackCodec: exact or refused with the path; hostile bytes give a value or a DecodeError."""

import collections
import dataclasses
import datetime as dt
import enum
import io
import struct
import tracemalloc
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from gather_core.codec import DecodeOptions, Limits, Trust
from gather_core.errors import DecodeError, EncodeError, LimitError

Land = Callable[[Sequence[Any]], list[memoryview]]
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
def test_every_type_comes_back_exactly(roundtrip: Any, assert_same: Any, obj: object) -> None:
    back = roundtrip(CODEC, obj)
    assert_same(back, obj)
    if isinstance(obj, dt.datetime | dt.time):
        assert (back.fold, type(back.tzinfo)) == (obj.fold, type(obj.tzinfo))


@pytest.mark.parametrize("count", [3, 2000])
@pytest.mark.parametrize("code", ["?", "i1", "u8", ">i4", "f2", "f4", "c16", "M8[ns]", "M8[25s]", "m8[D]", "M8"])
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
def test_arrays_of_every_layout_come_back(roundtrip: Any, assert_same: Any, array: np.ndarray[Any, Any]) -> None:
    back = roundtrip(CODEC, array)
    assert_same(back, array)
    assert back.flags.f_contiguous or not array.flags.f_contiguous


@pytest.mark.parametrize("scalar", [np.float64(1.5), np.float32("nan"), np.int8(-1), np.bool_(True), np.complex64(1j)])
def test_numpy_scalars_stay_numpy_scalars(roundtrip: Any, assert_same: Any, scalar: np.generic) -> None:
    assert_same(roundtrip(CODEC, [scalar, {scalar: 1}]), [scalar, {scalar: 1}])


@pytest.mark.parametrize(
    "tensor",
    [
        *(torch.arange(12.0).view(3, 4).t(), torch.randn(5000).bfloat16(), torch.zeros(0, 3), torch.tensor(True)),
        *(torch.randn(50, 50).to(torch.float8_e4m3fn), torch.ones(3, requires_grad=True), torch.tensor([1j]).conj()),
        torch.ones(3, requires_grad=True) * 2,
    ],
)
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
        *(collections.OrderedDict(), collections.defaultdict(int), Point(1), Color.RED, Record(), Text("x")),
        *(memoryview(b"x"), msgpack.ExtType(1, b""), msgpack.Timestamp(1), object(), range(3), slice(1), Point),
        *(
            np.array([None]),
            np.array(["x"]),
            np.zeros(2, [("a", "i4")]),
            np.str_("x"),
            np.longdouble(1),
            np.longlong(1),
        ),
        *(torch.nn.Parameter(torch.ones(1)), torch.eye(2).to_sparse(), torch.empty(1, device="meta"), torch.float32),
        *(dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "Z")), np.ma.array([1]), np.datetime64),
    ],
    ids=lambda bad: type(bad).__name__,
)
def test_what_it_cannot_keep_is_refused_with_its_path(bad: object) -> None:
    with pytest.raises(EncodeError, match=r"\$\.batch\[3\]\.meta\['a b'\]: .*"):
        CODEC.encode({"batch": [1, 2, (3,), {"meta": {"x": 1, "a b": bad}}]})


def test_cycles_depth_and_keys_are_refused_with_their_path() -> None:
    cycle: dict[str, Any] = {"a": []}
    cycle["a"].append(cycle)
    with pytest.raises(EncodeError, match=r"\$.*in a cycle"):
        CODEC.encode(cycle)
    with pytest.raises(EncodeError, match=r"\$\.a\[key of <Point>\]"):
        CODEC.encode({"a": {Point(1): 1}})
    with pytest.raises(EncodeError, match="same bytes"):
        CODEC.encode(dict.fromkeys([(float("nan"),), (float("nan"),)]))


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


def _ext(code: int, parts: object) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(parts)))
    return packed


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"\xc1", b"\x01\x02", b"\x91", _ext(99, [])),
        *(
            _ext(20, ["O", [1], "C", bytes(8)]),
            _ext(20, ["V9999999", [1], "C", b""]),
            _ext(20, ["<i4,O", [1], "C", b""]),
        ),
        *(_ext(20, ["<i4", [-1, -4], "C", bytes(16)]), _ext(20, ["<i4", [2**62, 4], "C", b""])),
        *(
            _ext(20, ["<i4", [1] * 65, "C", bytes(4)]),
            _ext(20, ["<i4", 4, "C", bytes(4)]),
            _ext(20, ["<i4", [1], "X", bytes(4)]),
        ),
        *(
            _ext(20, ["<i4", [1], "C", 1]),
            _ext(20, ["<i4", [1], "C", 0]),
            _ext(20, ["<i4", [1], "C", -1]),
            _ext(20, []),
        ),
        *(_ext(22, ["load", [1], False, bytes(4)]), _ext(22, ["float32", [True], False, bytes(4)])),
        *(_ext(22, ["int64", [1], True, bytes(8)]), _ext(22, ["float32", "a", False, b""])),
        *(_ext(10, [1, 1, 1, 0, 0, 0, 0, "../../etc/passwd", 0]), _ext(10, [1]), _ext(11, [0, 0, 0]), _ext(13, "x")),
        *(_ext(2, [[]]), _ext(7, 2**40)[:-1], msgpack.packb(msgpack.ExtType(14, b"x")), _ext(15, [b"x", 0])),
        b"\x81" + _ext(2, []) + b"\x01",
        b"\xd4\xffx",
    ],
)
def test_malformed_messages_are_decode_errors(land: Land, head: bytes) -> None:
    with pytest.raises(DecodeError):
        CODEC.decode(land([head]))


def test_frames_that_are_missing_unused_or_used_twice_are_refused(land: Land) -> None:
    head, frame = CODEC.encode(np.zeros(5000))
    twice = [msgpack.packb([msgpack.ExtType(20, msgpack.packb(["|i1", [4], "C", 1]))] * 2), b"abcd"]
    for frames in ([], [head], [head, frame, b""], [head, bytes(memoryview(frame)[1:])], twice):
        with pytest.raises(DecodeError):
            CODEC.decode(land(frames))


def _nested_headers() -> bytes:
    return b"\xdd\x00\x10\x00\x00" * 900 + bytes(1 << 20)


def _nested_tuples() -> bytes:
    head = msgpack.packb(1)
    for _ in range(500):
        head = msgpack.packb([msgpack.ExtType(1, head)])
    return bytes(head)


@pytest.mark.parametrize(
    "bomb", [_nested_headers(), b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", _nested_tuples()]
)
def test_claimed_lengths_allocate_nothing(land: Land, bomb: bytes) -> None:
    frames = land([bomb])
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            CODEC.decode(frames)
        assert tracemalloc.get_traced_memory()[1] < 16 * len(bomb) + 1_000_000
    finally:
        tracemalloc.stop()


def test_nested_extensions_hold_no_more_copies_than_the_payload_limit(land: Land) -> None:
    obj: Any = b"x" * 1_000_000
    for _ in range(100):
        obj = (obj,)
    frames = land(CODEC.encode(obj))
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match="copies of"):
            CODEC.decode(frames, DecodeOptions(limits=Limits(payload_nbytes=4_000_000)))
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert CODEC.decode(frames) == obj


def test_extensions_side_by_side_are_within_the_payload_limit_together(land: Land) -> None:
    obj = [((b"x" * 1000,),)] * 1000
    frames = land(CODEC.encode(obj))
    limits = Limits(payload_nbytes=sum(map(len, frames)))
    assert CODEC.decode(frames, DecodeOptions(limits=limits)) == obj


VALID = [
    bytes(memoryview(frame).cast("B"))
    for frame in CODEC.encode(
        [
            {"a": (1, 2.5), (1,): {2}},
            2**70,
            dt.datetime.now(BERLIN),
            Decimal("1.5"),
            np.arange(3),
            torch.ones(2, 2),
            np.arange(1000),
            uuid.uuid4(),
            1j,
            np.float32(1),
            bytearray(b"x"),
            dt.timedelta(1),
        ]
    )
]


@given(st.data())
def test_any_mutation_is_a_value_or_a_decode_error(data: st.DataObject) -> None:
    head = bytearray(VALID[0])
    for _ in range(data.draw(st.integers(1, 3))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    head = head[: data.draw(st.sampled_from([len(head), data.draw(st.integers(0, len(head)))]))]
    with suppress(DecodeError):
        CODEC.decode([memoryview(bytes(head)), memoryview(VALID[1])])


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
