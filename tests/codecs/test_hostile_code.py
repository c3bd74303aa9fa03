"""Bytes that want code to be run: codecs that build data only run none, load none and open no file for them."""

import functools
import importlib
import operator
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch

import hostile
from confined import Confined
from environment import variables
from gather_core import Codec, DecodeError, Gatherer, SetupError
from gather_core.registry import get_codec
from gather_core.testing.codec_frames import planted
from gather_transports.threads import ThreadGroup, ThreadRank
from thread_gatherers import texts

pytest_plugins = ["confined_fixture"]

_MIB = 1 << 20
DATA = ["msgpack", "msgpack:sorted_sets=true", "raw", "msgpack+zstd:min_nbytes=1", "raw+zstd:min_nbytes=1"]
CODE = ["pickle", "cloudpickle", "auto", "pickle+zstd:min_nbytes=1"]
DATETIME, PATH = 10, 16


class _Calls:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


def _gadgets(file: Path) -> list[object]:
    """Each makes the file when it is unpickled."""
    command = f"touch {file}"
    touch = f"open({str(file)!r}, 'w').close()"
    return [
        _Calls(os.system, command),
        _Calls(eval, touch),
        _Calls(exec, touch),
        _Calls(operator.methodcaller("touch"), file),
        _Calls(functools.partial(os.system, command)),
        _Calls(operator.call, os.system, command),
        [_Calls(getattr, _Calls(importlib.import_module, "os"), "system"), _Calls(Path.touch, file)],
        _Calls(torch.storage._load_from_bytes, pickle.dumps(_Calls(os.system, command))),
    ]


def _messages(spec: str, gadgets: list[object]) -> list[list[bytes]]:
    """Pickles of all protocols, as the codec's frames might hold them."""
    pickles = [pickle.dumps(gadget, protocol) for gadget in gadgets for protocol in (0, 2, 4, 5)] + planted()
    frames = [[data] for data in pickles] + [[b"", data] for data in pickles] + [[data, data] for data in pickles]
    frames += [[bytes(_packed(data))] for data in pickles]
    tables = [(b"\xff" * 8 * len(message), message) for message in frames]
    return [[table, *message] for table, message in tables] if "+zstd" in spec else frames


def _packed(data: bytes) -> bytes:
    return bytes(msgpack.packb([msgpack.ExtType(code, data) for code in (1, 5, 7, 13, 19, 20, 99)]))


@pytest.mark.plan(57)
@pytest.mark.parametrize("spec", DATA)
def test_a_pickle_that_runs_code_is_an_error_of_codecs_that_build_data(
    confined: Confined, tmp_path: Path, spec: str
) -> None:
    messages = _messages(spec, _gadgets(tmp_path / "made by a gadget"))
    assert set(confined.call(hostile.outcomes, spec, messages).result()) == {"DecodeError"}
    assert not list(tmp_path.iterdir())


@pytest.mark.plan(57)
def test_the_gadgets_work_where_code_may_run(confined: Confined, tmp_path: Path) -> None:
    for number, gadget in enumerate(_gadgets(tmp_path / "file")):
        if number != 4:  # takes the call apart already when it is pickled
            confined.call(hostile.events_of, "pickle", [[pickle.dumps(gadget, 4)]])
            if number != 7:  # which torch refuses by itself
                assert (tmp_path / "file").exists(), gadget
                (tmp_path / "file").unlink()


@pytest.mark.plan(57)
@pytest.mark.parametrize("spec", CODE)
@pytest.mark.fault(30)
def test_where_code_is_forbidden_on_one_rank_no_rank_gets_to_decode(spec: str, tmp_path: Path) -> None:
    def construct(member: ThreadRank) -> object:
        with Gatherer(codec=spec, transport="threads", group=member, timeout_s=10) as gatherer:
            return gatherer.all_gather(_gadgets(tmp_path / "file")[0])

    with variables(GATHER_FORBID_CODE="1"):
        (text,) = texts(ThreadGroup(2).run(construct))
    assert "UntrustedCodecError" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.plan(57)
@pytest.mark.fault(30)
def test_a_rank_with_a_codec_that_runs_code_is_refused_by_the_others_before_the_first_byte(tmp_path: Path) -> None:
    def construct(member: ThreadRank) -> object:
        codec = "pickle" if member.rank else "msgpack"
        with Gatherer(codec=codec, transport="threads", group=member, timeout_s=10) as gatherer:
            return gatherer.all_gather(_gadgets(tmp_path / "file")[0] if member.rank else 1)

    outcomes = ThreadGroup(2).run(construct)
    assert all(isinstance(outcome, SetupError) for outcome in outcomes), outcomes
    assert not list(tmp_path.iterdir())


def _corpus(spec: str) -> list[list[bytes]]:
    """Valid messages, each also with every byte changed in turn."""
    codec: Codec = get_codec(spec)
    objects: list[Any] = [b"abc", bytearray(5), torch.ones(3)]
    if spec.startswith("msgpack"):
        objects += [[{"a": (1, 2.5), (1,): {2}}, 2**70, 1j, range(3), Path("a")], slice(1, 2)]
    valid = [[bytes(memoryview(frame).cast("B")) for frame in codec.encode(obj)] for obj in objects]
    changed = [
        [*frames[:index], frame[:place] + bytes([frame[place] ^ flip]) + frame[place + 1 :], *frames[index + 1 :]]
        for frames in valid
        for index, frame in enumerate(frames)
        for place in range(len(frame))
        for flip in (1, 0x80, 0xFF)
    ]
    return [*valid, *changed]


@pytest.mark.plan(58)
@pytest.mark.parametrize("spec", DATA)
def test_codecs_that_build_data_never_unpickle_compile_or_import(confined: Confined, tmp_path: Path, spec: str) -> None:
    """There is no restricted unpickler: there is none at all."""
    messages = _corpus(spec) + _messages(spec, _gadgets(tmp_path / "file"))
    confined.call(hostile.events_of, spec, messages)  # what is imported at first use
    seen = confined.call(hostile.events_of, spec, messages).result()
    assert [event for event in seen if event[0] != "open"] == []


@pytest.mark.plan(58)
def test_unpickling_would_be_seen(confined: Confined) -> None:
    (message,) = [[pickle.dumps(_Calls(eval, "1"), 4)]]
    seen = [event for event, _ in confined.call(hostile.events_of, "pickle", [message]).result()]
    assert "pickle.find_class" in seen
    assert "exec" in seen


ZONES = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "",
    "Europe/../../../etc/passwd",
    "Europe/\0Berlin",
    "a" * 5000,
    "posixrules/x",
]


@pytest.mark.plan(62)
def test_a_zone_is_looked_for_in_the_database_only(confined: Confined) -> None:
    def message(zone: str) -> list[bytes]:
        return [msgpack.packb(msgpack.ExtType(DATETIME, msgpack.packb([1, 1, 1, 0, 0, 0, 0, zone, 0])))]

    for zone in ZONES:
        hostile.refusal(confined.call(hostile.decode, "msgpack", message(zone)))
    seen = confined.call(hostile.events_of, "msgpack", [message(zone) for zone in ZONES]).result()
    opened = [os.path.realpath(path) for event, path in seen if event == "open"]
    assert not [path for path in opened if "zoneinfo" not in path and "tzdata" not in path]
    known = confined.call(hostile.events_of, "msgpack", [message("Africa/Abidjan")]).result()
    assert any("zoneinfo" in path for event, path in known if event == "open")


@pytest.mark.plan(62)
def test_a_path_is_only_a_name(confined: Confined) -> None:
    message = [msgpack.packb(msgpack.ExtType(PATH, msgpack.packb(["PosixPath", "/etc/passwd"])))]
    assert confined.call(hostile.events_of, "msgpack", [message]).result() == []


MEMO_BOMB = b"\x80\x05N" + b"r\xff\xff\xff\x7f" + b"."
"""Asks the unpickler for a memo of 2^31 places (LONG_BINPUT)."""


@pytest.mark.plan(62)
@pytest.mark.parametrize("spec", CODE)
def test_a_memo_bomb_takes_memory_where_code_may_run(confined: Confined, spec: str) -> None:
    frames = [b"\xff" * 8, MEMO_BOMB] if "zstd" in spec else [MEMO_BOMB]
    error = confined.call(hostile.decode, spec, frames).error
    assert isinstance(error, DecodeError)
    assert hostile.ran_out_of_memory(error)


@pytest.mark.plan(62)
@pytest.mark.parametrize("spec", DATA)
def test_a_memo_bomb_takes_none_elsewhere(confined: Confined, spec: str) -> None:
    frames = [b"\xff" * 8, MEMO_BOMB] if "zstd" in spec else [MEMO_BOMB]
    hostile.refusal(confined.call(hostile.decode, spec, frames, more_nbytes=8 * _MIB))
