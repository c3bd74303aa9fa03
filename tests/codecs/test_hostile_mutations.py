"""Valid bytes, damaged at random: an object of the allowed types or an error of ours; the same one under a checksum."""

import datetime as dt
import random
import uuid
from collections import Counter, OrderedDict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hostile
from confined import Confined
from gather_core.registry import get_codec
from gather_core.slot import HEADER_NBYTES, Agreement, Kind, checksum_parts, pack_header, payload_nbytes, write_payload

pytest_plugins = ["confined_fixture"]

_MIB = 1 << 20
DATA = ["msgpack", "raw", "msgpack+zstd:min_nbytes=1", "raw+zstd:min_nbytes=1"]
OBJECTS: dict[str, list[Any]] = {
    "raw": [
        *(b"abc" * 99, bytearray(b"x" * 300), memoryview(bytes(24)).cast("d"), np.arange(60).reshape(6, 10).T),
        *(np.zeros(5, "i4, f8"), np.array(["a", "bc"]), np.array(["2020"], "M8[D]"), torch.ones(3, 4), torch.zeros(0)),
        torch.ones(40, dtype=torch.bfloat16, requires_grad=True),
    ],
    "msgpack": [
        *(None, [1, -1, 2**64 - 1, 2**70, 1.5, float("nan"), True], {"a": 1, 2: b"b", None: {(1,): "é\ud800"}}),
        *((1, (2,)), {1, "a"}, frozenset([(1, 2)]), [bytearray(b"x"), 1j, slice(1, None), range(3)], list(range(300))),
        *(OrderedDict(a=1), Counter("aab"), Decimal("1.50"), Fraction(1, 3), uuid.UUID(int=5), Path("a/b")),
        *(dt.datetime(2024, 10, 27, 2, tzinfo=ZoneInfo("Europe/Berlin"), fold=1), dt.date(1, 1, 1), dt.timedelta(-1)),
        *(
            dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5))),
            dt.time(1, 2),
            np.float32(1),
            np.dtype("<i4"),
        ),
        *(np.arange(4), np.arange(1000.0).reshape(10, 100), torch.ones(3), torch.zeros(600), torch.float32),
        *(torch.device("cpu"), torch.Size([1, 2]), [np.datetime64("2020"), (np.zeros((0, 3)), "x" * 2000)]),
    ],
}
ALLOWED = {
    *(f"builtins.{name}" for name in ("NoneType", "bool", "int", "float", "complex", "str", "bytes", "bytearray")),
    *(f"builtins.{name}" for name in ("list", "tuple", "dict", "set", "frozenset", "slice", "range", "memoryview")),
    *("collections.OrderedDict", "collections.Counter", "decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"pathlib.{name}" for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    *("zoneinfo.ZoneInfo", "uuid.SafeUUID", "numpy.ndarray", "torch.Tensor"),
    *("torch.dtype", "torch.device", "torch.Size"),
}
NUMPY = ("numpy.", "numpy.dtypes.")
"""Scalars and dtypes, of which each has a class."""


def _valid(spec: str) -> list[list[bytes]]:
    codec = get_codec(spec)
    objects = OBJECTS[spec.partition("+")[0]]
    return [[bytes(memoryview(frame).cast("B")) for frame in codec.encode(obj)] for obj in objects]


def _damage(frames: list[bytes], noise: random.Random) -> list[bytes]:
    damaged = [bytearray(frame) for frame in frames]
    for _ in range(noise.randint(1, 4)):
        frame = noise.choice(damaged)
        place, other = (noise.randrange(len(frame) + 1) for _ in range(2))
        how = noise.randrange(6)
        if how == 0:
            del frame[place:]
        elif how == 1:
            frame[place:place] = noise.randbytes(noise.randint(1, 9))
        elif how == 2:
            frame[place:place] = frame[min(place, other) : max(place, other)]
        elif how == 3 and len(damaged) > 1:
            damaged.remove(frame)
        elif frame:
            frame[place - 1] = noise.choice([0, 0xFF, 0x80, 0x7F, noise.randrange(256)])
    return [bytes(frame) for frame in damaged]


@pytest.mark.plan(61)
@pytest.mark.parametrize("spec", DATA)
@given(seed=st.integers(0, 2**32))
def test_damaged_messages_are_an_object_or_an_error_of_ours(confined: Confined, spec: str, seed: int) -> None:
    noise = random.Random(seed)
    messages = [_damage(frames, noise) for frames in _VALID[spec] for _ in range(3)]
    confined.call(hostile.outcomes, spec, messages, more_nbytes=64 * _MIB, within_s=60).result()


@pytest.mark.parametrize("spec", DATA)
def test_no_bytes_make_codecs_that_build_data_build_another_type(confined: Confined, spec: str) -> None:
    noise = random.Random(spec)
    messages = _VALID[spec] + [_damage(frames, noise) for frames in _VALID[spec] for _ in range(300)]
    seen = confined.call(hostile.types_of, spec, messages, more_nbytes=256 * _MIB).result()
    assert seen["errors"] > len(messages) // 10
    foreign = {name for name in seen if name not in ALLOWED and name.rpartition(".")[0] + "." not in NUMPY}
    assert foreign - {"errors"} == set()
    if spec.startswith("msgpack"):
        assert ALLOWED - {*seen} <= {"builtins.memoryview", "uuid.SafeUUID", *_OF_OTHER_SYSTEMS, *_INSIDE}


_OF_OTHER_SYSTEMS = {f"pathlib.{name}" for name in ("PurePosixPath", "WindowsPath", "PureWindowsPath")}
_INSIDE = {"zoneinfo.ZoneInfo", "datetime.timezone"}


def test_another_type_would_be_seen(confined: Confined) -> None:
    frames = [bytes(frame) for frame in get_codec("pickle").encode([1, ValueError("x")])]
    seen = confined.call(hostile.types_of, "pickle", [frames, [b"x"]]).result()
    assert seen.keys() - ALLOWED == {"errors", "builtins.ValueError"}


def _slot(frames: list[bytes]) -> bytes:
    nbytes = payload_nbytes(frames)
    slot = memoryview(bytearray(HEADER_NBYTES + nbytes))
    write_payload(slot[HEADER_NBYTES:], frames)
    agreement = Agreement(Kind.DATA, 1, 2, 3, 4).pack()
    slot[:HEADER_NBYTES] = pack_header(nbytes, 1, len(frames), checksum_parts([slot[HEADER_NBYTES:]]), agreement)
    return bytes(slot)


@pytest.mark.plan(61)
@pytest.mark.parametrize("spec", DATA)
@given(seed=st.integers(0, 2**32))
def test_under_a_checksum_a_damaged_slot_is_an_error_or_the_same_object(
    confined: Confined, spec: str, seed: int
) -> None:
    noise = random.Random(seed)
    slots = [(slot, _damage([slot], noise)[0]) for slot in map(_slot, _VALID[spec]) for _ in range(3)]
    seen = confined.call(hostile.damaged_slots, spec, slots, more_nbytes=64 * _MIB).result()
    assert "changed" not in seen
    assert "ProtocolError" in seen


_VALID = {spec: _valid(spec) for spec in DATA}
