"""Runs the tests of the sdist against the wheel, outside the checkout: `python -m release.against_wheel --help`."""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from release.contents import find_archives

_SOURCES = ("gather_core", "codecs", "transports", "benchmarks/gather_bench")
_WHERE = """
import importlib.metadata, pathlib, platform, sys
import gather_bench, gather_codecs, gather_core, gather_transports
for package in (gather_core, gather_codecs, gather_transports, gather_bench):
    if not pathlib.Path(package.__file__).is_relative_to(sys.prefix):
        sys.exit(f"{package.__name__} was to come from {sys.prefix}, not from {package.__file__}")
versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "msgpack", "pytest")}
print("gather-core", gather_core.__version__, "of the wheel, Python", platform.python_version(), versions, flush=True)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns pytest's exit status."""
    options = _parser().parse_args(arguments)
    wheel, sdist = find_archives(options.dist)
    with tempfile.TemporaryDirectory(prefix="gather-release-") as folder:
        where = Path(folder)
        _unpack_tests(sdist, where)
        python = _environment(options.environment or where / ".venv", options.python)
        pinned = [] if options.requirement else ["--constraint", "constraints.txt"]
        install = ["-m", "pip", "install", "--quiet"]
        _run(where, python, *install, *pinned, "--group", "test", f"{wheel.resolve()}[cli]", *options.requirement)
        _run(where, python, *install, "--no-deps", "--force-reinstall", str(wheel.resolve()))  # not one built before
        _run(where, python, "-c", _WHERE)
        pytest = [str(python.with_name("pytest")), "-p", "no:cacheprovider", *options.pytest]
        return subprocess.run(pytest, cwd=where, env=_clean_variables(), check=False).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m release.against_wheel", description=__doc__)
    parser.add_argument("--dist", type=Path, default=Path("dist"), help="the folder with wheel and sdist")
    parser.add_argument("--python", default=sys.executable, help="the Python of the new environment")
    parser.add_argument("--environment", type=Path, help="one to use, or to make and keep")
    requirement = "install this too, such as torch==2.8.0, and pin nothing else; repeatable"
    parser.add_argument("--requirement", action="append", default=[], help=requirement)
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, behind --")
    return parser


def _unpack_tests(sdist: Path, where: Path) -> None:
    """Everything but the packages themselves, so that none of them can be imported from here."""
    with tarfile.open(sdist) as archive:
        archive.extractall(where, filter="data")
    (root,) = where.iterdir()
    for source in _SOURCES:
        shutil.rmtree(root / source)
    for path in root.iterdir():
        path.rename(where / path.name)


def _environment(folder: Path, python: str) -> Path:
    """The Python of a virtual environment, which is made where there is none."""
    if not (folder / "bin" / "python").exists():
        _run(Path.cwd(), Path(python), "-m", "venv", str(folder))
    found = folder.absolute() / "bin" / "python"
    _run(Path.cwd(), found, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1")
    return found


def _run(where: Path, python: Path, *arguments: str) -> None:
    subprocess.run([str(python), *arguments], cwd=where, env=_clean_variables(), check=True)


def _clean_variables() -> dict[str, str]:
    """This process's variables, less those with which Python would find the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


if __name__ == "__main__":
    sys.exit(main())
