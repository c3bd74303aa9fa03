"""The check of what a release's archives hold sees what is missing, surplus or different."""

import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from release import contents

SDIST = {
    **dict.fromkeys(("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"), b"text"),
    **dict.fromkeys(("constraints.txt", "tests/conftest.py", "tests/golden/a.json", "tests/codecs/plan.toml"), b"text"),
    **dict.fromkeys(("docs/examples/codec.py", "docs/how-to/page.md"), b"text"),
    **{f"{root}{package}/py.typed": b"" for package, root in contents.ROOTS.items()},
    "codecs/gather_codecs/raw.py": b"code",
}
WHEEL = {
    **{f"{package}/py.typed": b"" for package in contents.ROOTS},
    **dict.fromkeys((f"gather_core-1.dist-info/{name}" for name in ("METADATA", "entry_points.txt")), b"text"),
    "gather_core-1.dist-info/licenses/LICENSE": b"text",
    "gather_codecs/raw.py": b"code",
}


def test_archives_that_are_as_they_should_be_are_read_and_found_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "gather_core-1-py3-none-any.whl", "w") as wheel:
        for name, content in WHEEL.items():
            wheel.writestr(name, content)
    with tarfile.open(tmp_path / "gather_core-1.tar.gz", "w:gz") as sdist:
        for name, content in SDIST.items():
            member = tarfile.TarInfo(f"gather_core-1/{name}")
            member.size = len(content)
            sdist.addfile(member, BytesIO(content))
    contents.main(str(tmp_path))
    assert f"{len(SDIST)} files, as they should be" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gather_codecs/py.typed", "gather_core-1.dist-info/licenses/LICENSE"])
def test_what_a_wheel_lacks_is_said(name: str) -> None:
    found = contents.findings({file: text for file, text in WHEEL.items() if file != name}, SDIST)
    assert any("wheel" in finding and name.rpartition("/")[2] in finding for finding in found)


def test_what_an_sdist_lacks_is_said() -> None:
    sdist = {file: text for file, text in SDIST.items() if file != "tests/golden/a.json"}
    assert contents.findings(WHEEL, sdist) == ["the sdist has no tests/golden/*.json"]


@pytest.mark.parametrize("name", ["tests/__pycache__/a.txt", ".pytest_cache/a", "tests/codecs/.hypothesis/a", "a.pyc"])
def test_what_tests_leave_behind_is_not_released(name: str) -> None:
    assert contents.findings(WHEEL, SDIST | {name: b""}) == [f"{name} must not be in the sdist"]


def test_a_wheel_installs_nothing_but_its_packages_and_they_are_those_of_the_sdist() -> None:
    changed = WHEEL | {"gather_codecs/raw.py": b"other code", "tests/conftest.py": b"text"}
    assert contents.findings(changed, SDIST) == [
        "tests/conftest.py is outside the packages of the wheel",
        "gather_codecs/raw.py differs between wheel and sdist",
    ]


def test_a_folder_with_the_archives_of_two_versions_is_refused(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / f"gather_core-{version}.tar.gz").touch()
    with pytest.raises(SystemExit, match="not 0 and 2"):
        contents.find_archives(tmp_path)
