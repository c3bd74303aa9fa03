"""What a source of settings holds: a TOML file, a mapping, a Namespace or a GatherSettings, as layers."""

import os
import tomllib
import warnings
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gather_core.errors import SettingsError, shorten, summarize
from gather_core.nearest import did_you_mean
from gather_core.settings import GatherSettings

_FILE, _PROFILE = "GATHER_SETTINGS", "GATHER_PROFILE"
_TABLE, _PROFILES = "gather", "profiles"
_PREFIX = "gather_"
"""Of the arguments of a program that are settings, where it has others too."""
_SETTINGS = frozenset({*(one.name for one in fields(GatherSettings)), _PROFILES})
_SHOWN_NBYTES = 200


@dataclass(frozen=True)
class Layer:
    """Settings from one place; those that it does not hold are left to the layers below."""

    origin: str
    """The place, for messages."""
    values: Mapping[Any, Any]
    """As found there: unchecked, and reading one may raise."""
    none_counts: bool = False
    """None is a value here, and does not mean "not given"."""
    skipped: frozenset[str] = frozenset()
    """Keys that may stand here and are no settings."""


def source_layers(source: object, profile: str | None) -> Iterator[Layer]:
    """Yields the settings of a source, then those of its chosen profile.

    Args:
        source: As `Gatherer.from_settings` takes it.
        profile: The profile's name; None: what `GATHER_PROFILE` says; "": no profile.

    Raises:
        SettingsError: There is no such file or profile, or the source is something else; what was found before it is
            yielded first.
    """
    if isinstance(source, GatherSettings):
        values = {one.name: getattr(source, one.name) for one in fields(source)}
        yield Layer("the given GatherSettings", values, none_counts=True)
        yield from _profile_layer({}, "the given GatherSettings", [_PROFILES], profile)
    else:
        table, where, path = _settings_table(source)
        yield Layer(_place(where, path), table, skipped=frozenset({_PROFILES}))
        yield from _profile_layer(table, where, [*path, _PROFILES], profile)


def show(value: object) -> str:
    """The repr of a value, short enough for a message."""
    return shorten(repr(value), _SHOWN_NBYTES)


def plain(value: object) -> object:
    """Copies mappings and sequences of any library as dicts, without their Nones, and lists; leaves what else it is."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return [plain(item) for item in value]
    return value


def _place(where: str, path: Sequence[str]) -> str:
    return f"{where} [{'.'.join(path)}]" if path else where


def _settings_table(source: object) -> tuple[Mapping[Any, Any], str, list[str]]:
    """Returns the table of settings, what it is in, and its path in there."""
    if source is None:
        source = os.environ.get(_FILE) or None
        if source is None:
            return {}, f"the defaults ({_FILE} is not set)", []
        return _table_of_file(str(source), f"{source} (named by {_FILE})")
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        return _table_of_file(name, name)
    where = f"the given {type(source).__name__}"
    if isinstance(source, Namespace):
        source = vars(source)
    if not isinstance(source, Mapping):
        raise SettingsError(
            "source must be the path of a TOML file, a mapping, an argparse Namespace, a GatherSettings or None, not "
            + show(source)
        )
    prefixed = {key.removeprefix(_PREFIX): key for key in source if isinstance(key, str) and key.startswith(_PREFIX)}
    if _TABLE not in source and not prefixed:
        return source, where, []
    _check_beside(source, where)
    if _TABLE in source:
        return _table(source, _TABLE, where, []), where, [_TABLE]
    return {key: source[name] for key, name in prefixed.items()}, f"{where} (keys with {_PREFIX}*)", []


def _check_beside(keys: Iterable[object], where: str) -> None:
    """Refuses settings that stand beside the table that holds them: they would be ignored."""
    misplaced = [str(key) for key in keys if key in _SETTINGS]
    if misplaced:
        raise SettingsError(f"{where}: {', '.join(misplaced)} must stand in [{_TABLE}], not beside it")


def _table_of_file(name: str, where: str) -> tuple[Mapping[Any, Any], str, list[str]]:
    document = _read_file(name, where)
    if _TABLE not in document:
        hint = did_you_mean(_TABLE, document) or f" Its top level has: {', '.join(document) or 'nothing'}"
        raise SettingsError(f"{where} has no table [{_TABLE}].{hint}")
    _check_beside(document, where)
    return _table(document, _TABLE, where, []), where, [_TABLE]


def _read_file(name: str, where: str) -> dict[str, Any]:
    try:
        with open(os.path.expanduser(name), "rb") as file:
            return tomllib.load(file)
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"{where} is not TOML: {exc}") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise SettingsError(
            f"settings file {where} cannot be read on this rank, as {os.path.abspath(name)!r}: {summarize(exc)}"
        ) from exc


def _table(parent: Mapping[Any, Any], key: str, where: str, path: Sequence[str]) -> Mapping[Any, Any]:
    """Returns a table inside another; an empty one for None."""
    try:
        table = parent[key]
    except Exception as exc:  # a mapping that computes its values, such as OmegaConf's
        raise SettingsError(f"{_place(where, path)}: {key} cannot be read: {summarize(exc)}") from exc
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        raise SettingsError(f"{_place(where, path)}: {key} must be a table, not {show(table)}")
    return table


def _profile_layer(table: Mapping[Any, Any], where: str, path: Sequence[str], profile: str | None) -> Iterator[Layer]:
    profiles = _table(table, _PROFILES, where, path[:-1]) if _PROFILES in table else {}
    named_by = f" (named by {_PROFILE})" if profile is None else ""
    name = os.environ.get(_PROFILE) if profile is None else profile
    if not isinstance(name, str | None):
        raise SettingsError(f"profile must be a str or None, not {show(name)}")
    if not name:
        return
    if named_by and not profiles:
        text = f"{_PROFILE}={name} has no effect: there are no profiles in {where}"
        warnings.warn(text, UserWarning, stacklevel=2)
        return
    if name not in profiles:
        known = [str(one) for one in profiles]
        raise SettingsError(
            f"{_place(where, path)}: no profile is named {name!r}{named_by}.{did_you_mean(name, known)} "
            f"Known: {', '.join(known) or 'none'}"
        )
    yield Layer(_place(where, [*path, name]), _table(profiles, name, where, path))
