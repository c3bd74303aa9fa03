"""The facts about software: versions, MPI, settings, variables, plug-ins."""

import contextlib
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from gather_core import __version__
from gather_core.doctor.facts import Mpi, Plugin, PluginState, Settings
from gather_core.errors import SettingsError, summarize
from gather_core.plugin_list import PluginInfo, list_plugins

OMP_NUM_THREADS = "OMP_NUM_THREADS"
SOCKET_IFNAME = "_SOCKET_IFNAME"
_ASK_MPI = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version())
"""
_MPI_WITHIN_S = 20.0


def look_at_versions() -> dict[str, str]:
    """Reads the versions on which ranks should agree."""
    return {
        "gather-core": __version__,
        "Python": platform.python_version(),
        "numpy": _version("numpy") or "missing",
        "torch": _version("torch") or "missing",
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def look_at_mpi() -> Mpi:
    """Asks for the MPI library in a process of its own: one that does not fit can end the process that loads it."""
    installed = _version("mpi4py")
    if installed is None:
        return Mpi(None)
    command = [sys.executable, "-c", _ASK_MPI]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MPI_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Mpi(installed, problem=summarize(exc))
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode == 0 and lines:
        return Mpi(installed, library=" ".join(lines[0].split()))
    return Mpi(installed, problem=lines[-1] if lines else f"its process ended with status {done.returncode}")


def look_at_settings() -> Settings:
    """Loads the settings as `Gatherer.from_settings()` would, and keeps what is wrong with them."""
    from gather_core.settings_sources import load_settings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = load_settings()
        except SettingsError as exc:
            return Settings(tuple(str(exc).splitlines()), _said(caught))
    return Settings((), _said(caught), str(loaded.transport), loaded.slot_nbytes)


def _said(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    return tuple(str(one.message) for one in caught if one.category is UserWarning)


def look_at_variables(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that matter between ranks; of unknown `GATHER_*`, which may hold a secret, none."""
    from gather_core.settings_variables import known_variables

    known = {*known_variables(), OMP_NUM_THREADS}
    return {
        name: text
        for name, text in sorted(variables.items())
        if text and (name in known or name.endswith(SOCKET_IFNAME))
    }


def look_at_plugins() -> tuple[Plugin, ...]:
    """Loads every plug-in, and sees whether it could run here."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        return tuple(map(_plugin, list_plugins()))


def _plugin(info: PluginInfo) -> Plugin:
    state: PluginState = "broken" if info.is_broken else "works" if info.available else "unavailable"
    return Plugin(info.kind, info.name, state, info.reason or "", tuple(info.warnings))
