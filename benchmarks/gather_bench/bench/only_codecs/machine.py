"""The machine and the versions that a run over codecs was made with."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gather_bench.bench.cpus import cpu_count
from gather_bench.bench.only_codecs.results import Machine
from gather_core import __version__

_LIBRARIES = ("torch", "numpy", "msgpack", "cloudpickle", "zstandard", "pandas")
_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> Machine:
    """Describes where this process runs; names no machine."""
    versions = {"Python": platform.python_version(), "gather-core": __version__, **dict(_installed(_LIBRARIES))}
    return Machine(_cpu(), cpu_count(), f"{platform.system()} {platform.machine()}", versions)


def _installed(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _cpu() -> str:
    """Where Linux says nothing about the model, what Python knows."""
    with suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
