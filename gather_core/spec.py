"""Spec strings, which choose codecs and transports and their options, `name:key=value,...+name`; their table form."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gather_core.errors import SettingsError
from gather_core.nearest import did_you_mean

NAME = re.compile(r"[a-z][a-z0-9_]*")
_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_TABLE = '{name = "zstd", level = 3}'
_OPTION = re.compile(
    r"""[ \t]* (?P<key> [A-Za-z_]\w* ) [ \t]* = [ \t]*
        (?P<value>
            "(?:[^"\\]|\\.)*"                          # a basic string
          | '[^']*'                                    # a literal string
          | [+-]? [\w.]+ (?: (?<=[eE]) [+-] \d+ )?     # a number or a word: only a sign's '+' belongs to it
        ) [ \t]*""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)


@dataclass(frozen=True)
class SpecPart:
    """One plug-in of a spec string with its options."""

    name: str
    options: Mapping[str, Any]


def parse_spec(spec: str) -> list[SpecPart]:
    """Parses a spec string, in time linear in its length.

    Returns:
        The parts in order; the values of their options are bool, int, float or str.

    Raises:
        SettingsError: It is not `name[:key=value,...]` joined by `+`, with TOML booleans, numbers and one-line strings
            as values. Blanks may stand around keys and values, nowhere else.
    """
    if not isinstance(spec, str):
        raise SettingsError(f"a spec must be a string such as 'msgpack+zstd', not {spec!r}")
    return _SpecScanner(spec).parts()


class _SpecScanner:
    """Reads a spec from left to right, without ever going back."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._position = 0

    def parts(self) -> list[SpecPart]:
        parts = [self._part()]
        while self._skip("+"):
            parts.append(self._part())
        if self._position != len(self._spec):
            raise self._expected("',', '+' or the end" if parts[-1].options else "':', '+' or the end")
        return parts

    def _part(self) -> SpecPart:
        name = self._take(NAME, "a name in lower case")[0]
        options: dict[str, Any] = {}
        more = self._skip(":")
        while more:
            option = self._take(_OPTION, "key=value, where value is a number, true, false or a string in quotes,")
            if option["key"] in options:
                raise SettingsError(f"{option['key']!r} is given twice in spec {self._spec!r}")
            options[option["key"]] = self._scalar(option["value"])
            more = self._skip(",")
        return SpecPart(name, options)

    def _scalar(self, text: str) -> Any:
        try:
            value = tomllib.loads(f"value = {text}")["value"]
            toml_scalar(value)  # raises for an int with more digits than Python writes
        except ValueError as exc:
            problem = f"{text!r} in spec {self._spec!r} is not a TOML boolean, number or string in quotes"
            raise SettingsError(f"{problem}: {exc}") from exc
        return value

    def _take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        match = pattern.match(self._spec, self._position)
        if match is None:
            raise self._expected(what)
        self._position = match.end()
        return match

    def _skip(self, character: str) -> bool:
        found = self._spec.startswith(character, self._position)
        self._position += found
        return found

    def _expected(self, what: str) -> SettingsError:
        rest = self._spec[self._position :]
        where = f"at {rest!r}" if rest else "at the end"
        return SettingsError(f"expected {what} {where} of spec {self._spec!r}, as in name:key=value,key=value+name")


def format_spec(name: str, options: Mapping[str, Any]) -> str:
    """Writes one part of a spec in canonical form: the inverse of `parse_spec`.

    Raises:
        SettingsError: A value is not a bool, int, float or str.
    """
    pairs = ",".join(f"{key}={toml_scalar(value)}" for key, value in options.items())
    return f"{name}:{pairs}" if pairs else name


def canonical_spec(spec: object, key: str) -> str:
    """Writes a spec in its one canonical form.

    Args:
        spec: A spec string; or its table form: a mapping such as `{"name": "zstd", "level": 3}`, or a sequence of
            them in the order of the string.
        key: The setting that it is the value of, for messages.

    Raises:
        SettingsError: It is neither, or holds what a spec cannot; names the place, as in `codec[1].level`.
    """
    if isinstance(spec, str):
        try:
            return "+".join(format_spec(part.name, part.options) for part in parse_spec(spec))
        except SettingsError as exc:
            raise SettingsError(f"{key} = {spec!r}: {exc}") from exc
    if isinstance(spec, Mapping):
        return _part_from_table(spec, key)
    if not isinstance(spec, Sequence) or not spec:
        raise SettingsError(f"{key} must be a spec string or a list of tables such as {_TABLE}, not {spec!r}")
    return "+".join(_part_from_table(table, f"{key}[{at}]") for at, table in enumerate(spec))


def _part_from_table(table: object, path: str) -> str:
    if not isinstance(table, Mapping):
        raise SettingsError(f"{path} must be a table such as {_TABLE}, not {table!r}")
    options = {key: value for key, value in table.items() if key != "name"}
    if "name" not in table:
        raise SettingsError(f"{path} = {dict(table)!r} has no name.{_meant_as_name(options)}")
    name = table["name"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SettingsError(f"{path}.name must be of a-z, 0-9 and _ and start with a letter, not {name!r}")
    for key, value in options.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise SettingsError(f"{path}: the key of an option must be of letters, digits and _, not {key!r}")
        if not isinstance(value, bool | int | float | str):
            raise SettingsError(f"{path}.{key} must be a bool, int, float or str, not {value!r}")
    return format_spec(name, options)


def _meant_as_name(options: Mapping[Any, Any]) -> str:
    near = next((key for key in options if did_you_mean(key, ["name"])), None)
    return f" Did you mean 'name' with {near!r}?" if near is not None else ""


def toml_scalar(value: object) -> str:
    """Writes a bool, int, float or str as in TOML.

    Raises:
        SettingsError: It is something else.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    raise SettingsError(f"a spec holds values of type bool, int, float and str, not {value!r}")
