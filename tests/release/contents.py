"""What the archives of a release must hold and must not: `make dist` runs `python -m release.contents dist`."""

import fnmatch
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOTS = {
    "gather_core": "",
    "gather_codecs": "codecs/",
    "gather_transports": "transports/",
    "gather_bench": "benchmarks/",
}
"""The folder of each package in the sdist; in the wheel they lie side by side."""
IN_SDIST = (
    *("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt"),
    *("tests/conftest.py", "tests/golden/*.json", "tests/codecs/plan.toml", "docs/examples/*.py", "docs/how-to/*.md"),
)
IN_WHEEL = (
    *(f"{package}/py.typed" for package in ROOTS),
    *("*.dist-info/METADATA", "*.dist-info/entry_points.txt", "*.dist-info/licenses/LICENSE"),
)
NOWHERE = ("*.py[co]", "*__pycache__*", "*_cache/*", "*.hypothesis/*", "*.venv/*", "site/*", "dist/*", "*~", "*.so")


def find_archives(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of a folder that has one of each.

    Raises:
        SystemExit: There are none, or those of several versions.
    """
    wheels, sdists = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        sys.exit(f"{folder} must hold one wheel and one sdist, not {len(wheels)} and {len(sdists)}: run `make dist`")
    return wheels[0], sdists[0]


def read_wheel(path: Path) -> dict[str, bytes]:
    """The files of a wheel, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_sdist(path: Path) -> dict[str, bytes]:
    """The files of an sdist, by name, without the folder around them."""
    with tarfile.open(path) as archive:
        files = ((member.name.partition("/")[2], archive.extractfile(member)) for member in archive.getmembers())
        return {name: file.read() for name, file in files if file is not None}


def findings(wheel: Mapping[str, bytes], sdist: Mapping[str, bytes]) -> list[str]:
    """What is wrong with two archives, in sentences; empty where nothing is."""
    return [
        *_missing("sdist", sdist, IN_SDIST),
        *_missing("wheel", wheel, IN_WHEEL),
        *(f"{name} must not be in the sdist" for name in _matching(sdist, NOWHERE)),
        *(f"{name} must not be in the wheel" for name in _matching(wheel, NOWHERE)),
        *(f"{name} is outside the packages of the wheel" for name in wheel if not _belongs_in_wheel(name)),
        *_differences(wheel, sdist),
    ]


def _missing(archive: str, names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    names = list(names)
    return [f"the {archive} has no {pattern}" for pattern in patterns if not fnmatch.filter(names, pattern)]


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = list(patterns)
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _belongs_in_wheel(name: str) -> bool:
    top = name.partition("/")[0]
    return top in ROOTS or top.endswith(".dist-info")


def _differences(wheel: Mapping[str, bytes], sdist: Mapping[str, bytes]) -> list[str]:
    """Where the packages of the wheel are not those of the sdist, byte for byte."""
    sources = {
        name.removeprefix(root): content
        for package, root in ROOTS.items()
        for name, content in sdist.items()
        if name.startswith(f"{root}{package}/")
    }
    packed = {name: content for name, content in wheel.items() if name.partition("/")[0] in ROOTS}
    names = sorted(sources.keys() | packed.keys())
    return [f"{name} differs between wheel and sdist" for name in names if sources.get(name) != packed.get(name)]


def main(folder: str) -> None:
    """Checks the archives of a folder and says what it has checked."""
    wheel, sdist = find_archives(Path(folder))
    in_wheel, in_sdist = read_wheel(wheel), read_sdist(sdist)
    found = findings(in_wheel, in_sdist)
    if found:
        sys.exit("\n".join(found))
    print(f"{wheel.name}: {len(in_wheel)} files; {sdist.name}: {len(in_sdist)} files, as they should be")


if __name__ == "__main__":
    main(*sys.argv[1:])
