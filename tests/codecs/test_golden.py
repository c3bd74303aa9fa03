"""Frames that releases have written: they decode for ever, and no change of them passes unnoticed.

How to write the files of a new wire version: `tests/golden/write.py`; what is promised: `docs/versions.md`.
"""

import json
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gather_codecs import message_types, raw
from gather_codecs.raw import RawCodec
from gather_core.exactness import parts
from gather_core.registry import get_codec
from golden import files
from golden.classes import registered
from golden.objects import GOLDENS, Golden
from golden.write import encode, main, version_today

CASES = [
    pytest.param(codec, version, name, id=f"{codec}-{version}-{name}")
    for codec in GOLDENS
    for version in files.versions_of(codec)
    for name in files.read(codec, version)["vectors"]
]
EXACT = [(codec, name) for codec, goldens in GOLDENS.items() for name, golden in goldens.items() if golden.is_exact]
LEAVES = [leaf for leaf in map(message_types.leaf_with_code, range(-128, 128)) if leaf is not None]
PICKLES = ("pickle", "cloudpickle", "auto")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture
def no_files(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty folder of vectors."""
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    return tmp_path


def _skip_where_not_promised(golden: Golden, written_with: dict[str, str]) -> None:
    here = files.written_with()
    if golden.is_code:
        for what in ("python", "cloudpickle"):
            if _release(here[what]) != _release(written_with[what]):
                pytest.skip(f"the frames hold code of {what} {written_with[what]}")
    if golden.spec.startswith(PICKLES):
        for what in ("python", "numpy", "torch"):
            if _release(here[what]) < _release(written_with[what]):
                pytest.skip(f"a pickle of {what} {written_with[what]}, which is newer than what is installed")


def _release(version: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", version)[:2]))


@pytest.mark.plan(67)
@pytest.mark.parametrize(("codec", "version", "name"), CASES)
def test_what_a_release_wrote_is_read_exactly(codec: str, version: int, name: str, land: Any, assert_same: Any) -> None:
    content = files.read(codec, version)
    golden = GOLDENS[codec][name]
    _skip_where_not_promised(golden, content["written_with"])
    vector = content["vectors"][name]
    decoded = get_codec(vector["spec"]).decode(land([files.from_text(text) for text in vector["frames"]]))
    assert_same(golden.look(decoded), golden.look(golden.make()))


def check_still_written(codec: str, name: str) -> None:
    version = version_today(codec)
    vectors = files.read(codec, version)["vectors"]
    if encode(GOLDENS[codec][name]) != vectors[name]["frames"]:
        pytest.fail(
            f"{codec} writes other frames for {name!r} than releases of wire version {version} did, which will not be "
            f"understood: where that is meant, make wire_version {version + 1}, go on decoding version {version}, run "
            f"tests/golden/write.py, and leave {files.path_of(codec, version).name} as it is"
        )


@pytest.mark.parametrize(("codec", "name"), EXACT)
def test_what_is_written_is_what_releases_of_this_wire_version_wrote(codec: str, name: str) -> None:
    check_still_written(codec, name)


def test_a_change_of_the_frames_is_noticed_and_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_write_json", json.dumps)  # blanks behind commas
    with pytest.raises(pytest.fail.Exception, match=r"make wire_version 2, .* leave raw-1\.json as it is"):
        check_still_written("raw", "numpy_empty")


@pytest.mark.parametrize("codec", GOLDENS)
def test_every_object_is_in_the_file_of_the_wire_version_of_today_and_no_version_is_missing(codec: str) -> None:
    today = version_today(codec)
    assert files.versions_of(codec) == list(range(1, today + 1)), "run tests/golden/write.py"
    assert files.read(codec, today)["vectors"].keys() == GOLDENS[codec].keys(), (
        "an object of no file: once a release has written the newest one, new objects wait for the next wire version"
    )


def test_every_built_in_codec_has_vectors() -> None:
    ours = {
        entry.name for entry in entry_points(group="gather_core.codecs") if entry.value.startswith("gather_codecs.")
    }
    assert ours == GOLDENS.keys()
    assert files.names() == {*GOLDENS, "slot", "seed"}


def test_every_type_in_the_table_of_msgpack_has_a_vector() -> None:
    kinds = {type(part) for golden in GOLDENS["msgpack"].values() for part in parts(golden.make())}
    found = {leaf.code for leaf in map(message_types.leaf_of, kinds) if leaf is not None}
    assert found == {leaf.code for leaf in LEAVES}


def test_every_kind_of_raw_has_a_vector() -> None:
    heads = [files.from_text(vector["frames"][0])[4:] for vector in files.read("raw", 1)["vectors"].values()]
    assert {json.loads(head)[0] for head in heads} == raw._REBUILD.keys()


def test_frames_compressed_stored_and_padded_are_among_those_of_zstd() -> None:
    vectors = files.read("zstd", 1)["vectors"]
    tables = {name: files.from_text(vector["frames"][0]) for name, vector in vectors.items()}
    assert tables["stored"] == b"\xff" * 16
    assert tables["compressed"] == b"\xff" * 8 + (50_000).to_bytes(8, "little")
    assert b"\xff" * 8 in tables["several_frames"]
    assert b"\x50\x2a\x4d\x18" in files.from_text(vectors["dense"]["frames"][2])  # a skippable frame


def test_a_file_of_vectors_is_never_written_again(no_files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write("raw", 1, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        files.write("raw", 1, {"a": 2})
    monkeypatch.setattr("sys.argv", ["write.py", "raw"])
    main()
    assert path.read_bytes() == before


def test_a_new_wire_version_gets_a_file_of_its_own(
    no_files: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["write.py", "raw"])
    main()
    monkeypatch.setattr(RawCodec, "wire_version", 2)
    main()
    assert capsys.readouterr().out.split("\n") == ["raw-1.json is new: commit it", "raw-2.json is new: commit it", ""]
    assert files.versions_of("raw") == [1, 2]
    assert files.read("raw", 2)["vectors"] == files.read("raw", 1)["vectors"]


@given(st.lists(st.tuples(st.binary(max_size=20), st.integers(1, 400))))
def test_the_text_of_bytes_gives_them_back(runs: list[tuple[bytes, int]]) -> None:
    data = b"".join(pattern * count for pattern, count in runs)
    assert files.from_text(files.to_text(data)) == data


def test_repeated_bytes_are_short_as_text() -> None:
    assert files.to_text(b"\xff" + b"ab" * 500 + b"\0") == "ff 6162*500 00"


def test_no_vector_holds_the_path_of_the_folder_that_it_was_made_in() -> None:
    names = [str(files.FOLDER.parents[depth]).encode() for depth in range(2)]
    for codec in GOLDENS:
        for vector in files.read(codec, version_today(codec))["vectors"].values():
            data = b"".join(map(files.from_text, vector["frames"]))
            assert not any(name in data for name in names)
