"""Every built-in codec keeps the contract that plug-ins are held to."""

import datetime as dt
import functools
import json
import math
import threading
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import torch

from gather_codecs.zstandard_frames import ZstdCodec
from gather_core import FunctionCodec
from gather_core.codec import Codec, Trust
from gather_core.registry import get_codec
from gather_core.testing.codec_contract import CodecContract

ARRAYS: list[object] = [
    *(np.arange(6)[::-2], np.zeros((0, 3)), np.array(2.5), np.arange(10, dtype=">i4")),
    *(np.array(["2020-01-01", "NaT"], dtype="M8[ns]"), np.arange(20_000.0).reshape(100, 200).T),
]
TENSORS: list[object] = [
    *(torch.tensor(5.0), torch.zeros(0, 3), torch.arange(12).reshape(3, 4).t(), torch.ones(3, requires_grad=True)),
    *(torch.randn(70, 70).to(torch.bfloat16), torch.randn(70, 70).to(torch.float8_e5m2), torch.tensor([1 + 2j]).conj()),
    *(torch.arange(5)[::2][:1], torch.ones(1).expand(3, 4), torch.arange(3).to(torch.uint16)),
]
NESTED: list[object] = [
    {(1, (2, None)): [b"", ""], None: 2.5, b"k": -0.0},
    [1, [2, (3, {4}, frozenset({(5,)}))], {}, (), [], set(), frozenset()],
    [0, -1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 2**4000],
    [math.inf, -math.inf, math.nan, 5e-324, complex(-0.0, math.inf), {True: 1}, "\ud800 \0 \U0001f600"],
    dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    [dt.date(9999, 12, 31), dt.time(23, 59, fold=1), dt.timedelta(-1, 5, 7), dt.datetime(2024, 2, 29, 1, 2, 3, 4)],
    [Decimal("1.50"), Decimal("-0"), Decimal("1E+400"), uuid.UUID(int=5)],
    [np.float32(1.5), np.int64(-3), np.bool_(True), np.datetime64("2020-01-01")],
    {"ids": torch.arange(3000), "scores": np.ones((50, 50)), "text": ["a", "b"]},
]


class _EveryCodec(CodecContract):
    spec = ""

    def make_codec(self) -> Codec:
        return get_codec(self.spec)


class _Structured(_EveryCodec):
    """For codecs that take any nesting of plain data, arrays and tensors."""

    def objects(self) -> Sequence[object]:
        return [*super().objects(), *ARRAYS, *TENSORS, *NESTED]


class _Pickles(_Structured):
    def objects(self) -> Sequence[object]:
        records = np.zeros(3, [("a", "i4"), ("b", "f8")])
        channels_last = torch.ones(2, 3, 40, 5).to(memory_format=torch.channels_last)
        layouts = [np.ones((30, 20, 10)).transpose(2, 0, 1), channels_last]
        large = [bytes(300_000), bytearray(300_000)]
        parameter = torch.nn.Parameter(torch.ones(2000))
        return [*super().objects(), OrderedDict(b=1, a=[2]), parameter, records, Trust.CODE, layouts, large]

    def refused(self) -> Sequence[object]:
        return [threading.Lock(), [np.zeros(5000), threading.Lock()]]


class TestPickle(_Pickles):
    spec = "pickle"


class TestCloudpickle(_Pickles):
    spec = "cloudpickle"


class TestAuto(_Pickles):
    spec = "auto"


class TestMessagePack(_Structured):
    spec = "msgpack"

    def refused(self) -> Sequence[object]:
        return [object(), Trust.CODE, [{1: torch.nn.Parameter(torch.ones(1))}], np.array([None])]


class TestRaw(_EveryCodec):
    spec = "raw"

    def objects(self) -> Sequence[object]:
        aligned = np.dtype("i1, i8", align=True)
        return [
            *(b"", b"bytes", b"x" * 10_000, bytearray(), bytearray(b"x" * 10_000)),
            *(memoryview(b""), memoryview(b"x" * 9), memoryview(bytearray(24)).cast("d", (1, 3)), np.zeros(3, aligned)),
            *(np.array(["é", "ab"]), np.array([b"a", b"bc"]), np.zeros(3, "V5"), np.broadcast_to(np.arange(3), (2, 3))),
            *(ARRAYS + TENSORS),
        ]

    def refused(self) -> Sequence[object]:
        return [None, [b"x"], np.float64(1), np.array([None]), torch.nn.Parameter(torch.ones(1))]

    def compressible(self) -> object:
        return bytes(4_000_000)


class TestPickleZstd(TestPickle):
    spec = "pickle+zstd:min_nbytes=100"


class TestCloudpickleZstd(TestCloudpickle):
    spec = "cloudpickle+zstd"


class TestAutoZstd(TestAuto):
    spec = "auto+zstd"


class TestMessagePackZstd(TestMessagePack):
    spec = "msgpack+zstd:level=3,min_nbytes=1"


class TestRawZstd(TestRaw):
    spec = "raw+zstd:min_nbytes=1"


class TestFunctionCodecOfJson(CodecContract):
    def make_codec(self) -> Codec:
        return FunctionCodec("json", json.dumps, functools.partial(json.loads, strict=True), trust=Trust.DATA)

    def objects(self) -> Sequence[object]:
        nan = float("nan")
        return [None, True, 12, 2**100, -0.0, nan, "é\0", [], {}, [1, [2.5, None]], {"b": 1, "a": ["x" * 20_000]}]

    def refused(self) -> Sequence[object]:
        return [{1, 2}, b"x", object()]


class TestFunctionCodecOfJsonZstd(TestFunctionCodecOfJson):
    def make_codec(self) -> Codec:
        return ZstdCodec(super().make_codec(), min_nbytes=1)
