"""MessagePackCodec: the types of the standard library, numpy and torch that its table holds, in every position.

Numbers in comments and docstrings are those of plan.toml.
"""

import enum
import struct
from collections import Counter, OrderedDict, defaultdict
from fractions import Fraction
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from fresh_python import run_python
from gather_codecs.messagepack import MessagePackCodec
from gather_core.errors import EncodeError
from gather_core.registry import get_codec

CODEC = MessagePackCodec()
NAN = struct.unpack("<d", b"\x01\0\0\0\0\0\xf8\x7f")[0]


class Kind(enum.IntEnum):
    ONE = 1


def _with_attribute(obj: Any) -> Any:
    obj.note = 1
    return obj


@pytest.mark.parametrize(
    "obj",
    [
        *(slice(3), slice(None, 2.5, "x"), slice((1, [2]), np.arange(3)), range(5), range(7, -(2**80), -3), range(0)),
        *(Fraction(-7, 3), Fraction(2**90, 3), Fraction(0), [Fraction(1, 2)] * 3, {Fraction(1, 2): 1, 0.25: 2}),
        *(
            Path("a/../b"),
            Path(),
            Path("//x/y"),
            PurePosixPath("é\udcff"),
            PureWindowsPath("C:/x", "y"),
            {Path("k"): 1},
        ),
        # 9, 10: exactly their type, in their order.
        *(OrderedDict(z=1, a=[OrderedDict()]), OrderedDict({(1,): {2}}), Counter("abca"), Counter({1: -2, "x": 2.5})),
        *(Counter(), {"z": 1, "a": 2, "m": (3,)}, OrderedDict({2: 1, 1: 2, 2**70: 3})),
        *(
            torch.float32,
            torch.bfloat16,
            torch.qint8,
            torch.Size([]),
            torch.Size([2, 3]),
            {torch.int8: torch.Size([0])},
        ),
        *(
            torch.device("cpu"),
            torch.device("cuda"),
            torch.device("cuda:7"),
            torch.device("meta"),
            (torch.device("cpu", 0),),
        ),
        *(np.dtype("f4"), np.dtype(">i8"), np.dtype("M8[ns]"), [np.dtype("?")], {np.dtype("c8"): 1}),
        # 1, 2: numbers on all levels, also where all of a level are numbers.
        *(
            [1, [2.5, [True, 2**64 - 1]]],
            [NAN, [-0.0, [complex(-0.0, NAN)]]],
            [[1], [2], [b"x"]],
            [[1], [bytearray(b"x")]],
        ),
        # 3: keys that are equal to others of another type.
        *({1: 0, "1": 1, (1, 2): 2, None: 3, b"k": 4, 2.5: 5, float("nan"): 6}, {True: 0}, {(True, 1.0): [{(1,): 0}]}),
        # 12: lists that imitate a tag, plain data that imitates what is lowered.
        *([27, [1, 2, 3]], ["PosixPath", "x"], ["point", {"x": 1}], {"__type__": "tuple", "items": [1]}),
        # 4, 5: what is empty, and what is nested.
        *((((((),),),),), [(), set(), frozenset(), {}, []], {frozenset({frozenset({(1, "a")})}), ()}),
    ],
    ids=lambda obj: f"{type(obj).__name__} {obj!a:.40}",
)
@pytest.mark.plan(1, 2, 3, 4, 5, 9, 10, 12)
def test_what_the_table_holds_comes_back_exactly(roundtrip: Any, assert_same: Any, obj: object) -> None:
    assert_same(roundtrip(CODEC, obj), obj)
    assert_same(roundtrip(CODEC, {"a": [obj, (obj,)]}), {"a": [obj, (obj,)]})


def test_paths_are_of_the_class_that_they_were() -> None:
    back: Any = CODEC.decode([memoryview(CODEC.encode([Path("x"), PureWindowsPath("x")])[0])])
    assert list(map(type, back)) == [PosixPath, PureWindowsPath]


@pytest.mark.parametrize(
    "bad",
    [
        *(bytearray, memoryview(b"x"), memoryview(bytearray(b"x")), msgpack.ExtType(5, b"\1"), msgpack.Timestamp(1, 2)),
        *(
            defaultdict(None),
            Kind.ONE,
            _with_attribute(OrderedDict()),
            _with_attribute(Counter()),
            type("C", (Counter,), {})(),
        ),
        *(np.dtype("O"), np.dtype([("a", "O")]), np.dtype("g"), np.array([None])),
        *(torch.strided, torch.Generator(), torch.nn.Parameter(torch.ones(1)), torch.ones(2, device="meta")),
        torch.ones(2).to_sparse(),
        *(Fraction((1 << 300_000) + 1, 1 << 300_000), type("F", (Fraction,), {})(1), iter(()), len, NotImplemented),
    ],
    ids=lambda bad: type(bad).__name__,
)
@pytest.mark.parametrize("beside", [[1, 2.5], [1, (2,)], [bytearray(b"x")]], ids=["plain", "tuple", "bytearray"])
@pytest.mark.plan(8, 9, 11, 17, 24)
def test_everything_else_is_refused_with_its_path(beside: list[object], bad: object) -> None:
    """8, 9, 11, 17, 24; also in data that is otherwise plain, which goes through the packer as a whole."""
    with pytest.raises(EncodeError, match=r"^msgpack cannot encode \$\.batch\[3\]\.meta: "):
        CODEC.encode({"batch": [beside, 0, 0, {"meta": bad}]})
    with pytest.raises(EncodeError, match=r"\$: "):
        CODEC.encode(bad)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
@pytest.mark.plan(24)
def test_nested_and_quantized_tensors_and_subclasses_are_refused_with_their_path() -> None:
    """24."""
    odd: list[Any] = [torch.ones(1).as_subclass(type("Mine", (torch.Tensor,), {}))]
    odd.append(torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged))
    odd.append(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    for tensor in odd:
        with pytest.raises(EncodeError, match=r"\$\.x\[0\]: it keeps no .*(Mine|Tensor|NestedTensor) like"):
            CODEC.encode({"x": [tensor]})


@pytest.mark.parametrize(
    ("obj", "path"),
    [
        (slice(1, [object()]), r"\$\.stop\[0\]"),
        (OrderedDict({"a b": (1, object())}), r"\$\['a b'\]\[1\]"),
        (Counter({"x": object()}), r"\$\.x"),
        ({(1, object()): 2}, r"\$\[key of <tuple>\]\[1\]"),
        ([[1], [2], [{3: object()}]], r"\$\[2\]\[0\]\[3\]"),
        ([1, frozenset({len})], r"\$\[1\]\[0\]"),
    ],
)
def test_paths_lead_through_every_container(obj: object, path: str) -> None:
    with pytest.raises(EncodeError, match=f"cannot encode {path}: it keeps no"):
        CODEC.encode(obj)


def test_plain_data_that_is_too_deep_or_in_a_cycle_is_refused() -> None:
    deep: Any = []
    for _ in range(150):
        deep = [1, deep]
    wide: list[Any] = []
    wide += [wide] * 1000
    for obj in (deep, wide, {"a": [deep]}):
        with pytest.raises(EncodeError, match=r"\$.*nested more than 100 deep, or in a cycle"):
            CODEC.encode(obj)


@pytest.mark.plan(5)
def test_sets_can_be_sent_in_an_order_that_does_not_depend_on_the_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """5: ranks have different seeds."""
    script = (
        "from gather_core.registry import get_codec; data = {str(i) for i in range(40)}\n"
        "print(bytes(get_codec('msgpack:sorted_sets=true').encode([data, frozenset(data)])[0]).hex())"
    )
    printed = set()
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        printed.add(run_python(script))
    assert len(printed) == 1
    codec = get_codec("msgpack:sorted_sets=true")
    assert codec.spec == "msgpack:sorted_sets=true"
    assert codec.fingerprint() == CODEC.fingerprint()
    assert CODEC.decode([memoryview(codec.encode({3, 1, (2,)})[0])]) == {3, 1, (2,)}
