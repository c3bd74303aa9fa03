"""FunctionCodec: a pair of functions as a codec; whatever is wrong with them explains itself."""

import functools
import json
import operator
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest

from gather_codecs.zstandard_frames import ZstdCodec
from gather_core import FunctionCodec, Gatherer, SettingsError, Trust
from gather_core.errors import DecodeError, EncodeError, RemoteEncodeError


def _json(**changes: Any) -> FunctionCodec:
    arguments: dict[str, Any] = {"name": "json", "dumps": json.dumps, "loads": json.loads} | changes
    return FunctionCodec(**arguments)


def test_json_works_through_a_gatherer_and_below_zstd() -> None:
    rows = {"loss": 0.25, "text": "é" * 20_000}
    for codec in (_json(), ZstdCodec(_json())):
        with Gatherer(codec=codec, transport="single") as gatherer:
            assert gatherer.all_gather(rows) == [rows]


def test_an_object_that_dumps_refuses_fails_as_with_any_codec() -> None:
    with Gatherer(codec=_json(), transport="single") as gatherer:
        with pytest.raises(RemoteEncodeError, match="codec json cannot encode this set: TypeError"):
            gatherer.all_gather({1})


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_likes_are_not_copied_and_arrive_as_bytes(kind: Any, land: Any) -> None:
    codec = _json(dumps=kind, loads=lambda data: data)
    assert codec.decode(land(codec.encode(b"abc"))) == b"abc"
    memory = bytearray(b"abc")
    (frame,) = _json(dumps=lambda obj: obj).encode(memory)
    memory[0] = 7
    assert frame[0] == 7


def test_text_travels_as_utf_8(land: Any) -> None:
    codec = _json(dumps=str, loads=lambda data: data.decode())
    (frame,) = codec.encode("é𝄞")
    assert bytes(frame) == "é𝄞".encode()
    assert codec.decode(land([frame])) == "é𝄞"


@pytest.mark.parametrize(
    ("dumped", "text"),
    [
        (None, "must return bytes, contiguous bytes-like memory or str; it returned NoneType"),
        ([b"x"], "it returned list"),
        (memoryview(b"abcd")[::2], r"it returned memoryview .*C-contiguous"),
        ("\ud800", "no UTF-8: .*surrogates.*escape it in dumps, or return bytes"),
    ],
)
def test_what_is_neither_bytes_nor_text_is_refused(dumped: object, text: str) -> None:
    with pytest.raises(EncodeError, match=text) as caught:
        _json(dumps=lambda obj: dumped).encode(1)
    assert "dumps of codec 'json'" in str(caught.value)


def test_loads_that_takes_text_is_told_that_it_gets_bytes(land: Any) -> None:
    for loads in (lambda text: text.split(","), lambda text: text.encode()):
        with pytest.raises(
            DecodeError, match=r"loads of codec 'json' failed on 3 bytes: .*; loads gets bytes, also where"
        ):
            _json(loads=loads).decode(land([b"a,b"]))


def test_what_loads_raises_is_kept(land: Any) -> None:
    with pytest.raises(DecodeError, match=r"failed on 1 bytes: JSONDecodeError: [^;]*$") as caught:
        _json().decode(land([b"{"]))
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *(
            ({"name": name}, "name of a codec must be of a-z")
            for name in ("", "My codec", "json+zstd", "Json", None, 5)
        ),
        *(({"dumps": None}, "dumps of codec 'json' must be a function, not None"), ({"loads": "x"}, "loads of codec")),
        *(({"trust": "data"}, r"must be Trust\.DATA or Trust\.CODE, not 'data'"), ({"trust": None}, "trust of codec")),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        _json(**changes)


def test_decoding_is_taken_for_code_unless_it_is_declared_as_data() -> None:
    assert _json().trust is Trust.CODE
    assert _json(trust=Trust.DATA).trust is Trust.DATA
    assert ZstdCodec(_json(trust=Trust.DATA)).trust is Trust.DATA


def _other(obj: object) -> str:
    return json.dumps(obj)


def test_the_fingerprint_tells_names_and_functions_apart() -> None:
    names = [_json(), _json(name="other"), _json(dumps=_other), _json(loads=operator.itemgetter(0)), _json(loads=bytes)]
    assert len({codec.fingerprint() for codec in names}) == len(names)


def test_the_fingerprint_is_the_same_for_equal_functions_made_anew() -> None:
    def make() -> FunctionCodec:
        return _json(dumps=functools.partial(json.dumps, indent=1), loads=lambda data: json.loads(data))

    assert make().fingerprint() == make().fingerprint()
    assert _json(dumps=functools.partial(json.dumps)).fingerprint() == _json().fingerprint()
    assert "0x" not in _json(loads=operator.itemgetter(0)).fingerprint()


def test_the_fingerprint_does_not_depend_on_what_the_main_module_is_called(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import json\nfrom gather_core import FunctionCodec\ndef dumps(obj): return json.dumps(obj)\n"
        "codec = FunctionCodec('mine', dumps, lambda data: json.loads(data))\n"
    )
    codecs = [runpy.run_path(str(script), run_name=name)["codec"] for name in ("__main__", "__mp_main__", "job")]
    assert len({codec.fingerprint() for codec in codecs}) == 1


def test_it_can_be_pickled_where_its_functions_can() -> None:
    codec = pickle.loads(pickle.dumps(_json(trust=Trust.DATA)))
    assert codec.fingerprint() == _json().fingerprint()
    assert (codec.name, codec.trust) == ("json", Trust.DATA)
