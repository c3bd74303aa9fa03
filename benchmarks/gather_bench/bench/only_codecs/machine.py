"""The machine and the versions that a run over codecs was made with."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from gather_bench.bench.cpus import cpu_count, cpu_model
from gather_bench.bench.only_codecs.results import Machine
from gather_core import __version__

_LIBRARIES = ("torch", "numpy", "msgpack", "cloudpickle", "zstandard", "pandas")


def describe_machine() -> Machine:
    """Describes where this process runs; names no machine."""
    versions = {"Python": platform.python_version(), "gather-core": __version__, **dict(_installed(_LIBRARIES))}
    return Machine(cpu_model(), cpu_count(), f"{platform.system()} {platform.machine()}", versions)


def _installed(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        with suppress(PackageNotFoundError):
            yield name, version(name)
