"""Codecs and transports by name, and the spec strings that choose them: `name:key=value,...+name`.

Names resolve to what was registered by hand, then to the built-ins, then to entry points of installed distributions.
Nothing is imported before it is used.
"""

import inspect
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from gather_core.codec import Codec
from gather_core.errors import SettingsError, UnknownPluginError
from gather_core.transport import Transport

_BUILTIN_CODECS = {
    "cloudpickle": "gather_codecs.cloudpickle5:CloudpickleCodec",
    "msgpack": "gather_codecs.messagepack:MessagePackCodec",
    "pickle": "gather_codecs.pickle5:PickleCodec",
    "zstd": "gather_codecs.zstandard_frames:ZstdCodec",
}
_BUILTIN_TRANSPORTS = {
    "gloo": "gather_transports.gloo:GlooTransport",
    "single": "gather_transports.single:SingleTransport",
    "threads": "gather_transports.threads:ThreadsTransport",
}
_registered_codecs: dict[str, type[Codec]] = {}
_registered_transports: dict[str, type[Transport]] = {}

_PART = re.compile(r"(?P<name>[a-z][a-z0-9_]*)(?::(?P<options>.+))?", re.DOTALL)
_QUOTED = r"""\"(?:[^"\\]|\\.)*"|'[^']*'"""
_OPTION = re.compile(rf"""\s*(?P<key>\w+)\s*=\s*(?P<value>{_QUOTED}|[^,+"']+(?:\+\d+)?)\s*(?:,|$)""")
_SPLIT = re.compile(rf"""\+(?=[a-z])(?=(?:[^"']|{_QUOTED})*$)""")


@dataclass(frozen=True)
class SpecPart:
    """One plug-in of a spec string with its options."""

    name: str
    options: Mapping[str, Any]


def parse_spec(spec: str) -> list[SpecPart]:
    """Parses a spec string.

    Raises:
        SettingsError: It is not `name[:key=value,...]` joined by `+`, with TOML scalars as values.
    """
    if not isinstance(spec, str):
        raise SettingsError(f"a spec must be a string such as 'msgpack+zstd', not {spec!r}")
    return [_parse_part(part, spec) for part in _SPLIT.split(spec)]


def _parse_part(part: str, spec: str) -> SpecPart:
    match = _PART.fullmatch(part)
    if match is None:
        raise SettingsError(f"{part!r} in spec {spec!r} is not of the form name:key=value,key=value")
    options: dict[str, Any] = {}
    rest = match["options"] or ""
    while rest:
        option = _OPTION.match(rest)
        if option is None:
            raise SettingsError(f"{rest!r} in spec {spec!r} is not of the form key=value,key=value")
        if option["key"] in options:
            raise SettingsError(f"{option['key']!r} is given twice in spec {spec!r}")
        try:
            options[option["key"]] = tomllib.loads(f"value = {option['value']}")["value"]
        except tomllib.TOMLDecodeError as exc:
            raise SettingsError(f"{option['value']!r} in spec {spec!r} is not a TOML value: {exc}") from exc
        rest = rest[option.end() :]
    return SpecPart(match["name"], options)


def format_spec(name: str, options: Mapping[str, Any]) -> str:
    """Writes one part of a spec in canonical form: the inverse of `parse_spec`."""
    pairs = ",".join(f"{key}={_toml(value)}" for key, value in options.items())
    return f"{name}:{pairs}" if pairs else name


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def register_codec(name: str, codec: type[Codec], *, replace: bool = False) -> None:
    """Makes a codec class known by name.

    Raises:
        SettingsError: The name is taken and `replace` is False.
    """
    _check_free(name, _registered_codecs, _BUILTIN_CODECS, "codec", replace)
    _registered_codecs[name] = codec


def register_transport(name: str, transport: type[Transport], *, replace: bool = False) -> None:
    """Makes a transport class known by name; see `register_codec`."""
    _check_free(name, _registered_transports, _BUILTIN_TRANSPORTS, "transport", replace)
    _registered_transports[name] = transport


def _check_free(name: str, registered: Mapping[str, Any], builtin: Mapping[str, str], kind: str, replace: bool) -> None:
    taken = registered.get(name) or builtin.get(name)
    if taken and not replace:
        raise SettingsError(f"the {kind} {name!r} is taken by {taken}; pass replace=True to override it")


def codec_class(name: str) -> type[Codec]:
    """Returns the codec class of that name.

    Raises:
        UnknownPluginError: Nobody registered it.
    """
    found: type[Codec] = _resolve(name, _registered_codecs, _BUILTIN_CODECS, "codec")
    return found


def transport_class(name: str) -> type[Transport]:
    """Returns the transport class of that name.

    Raises:
        UnknownPluginError: Nobody registered it.
    """
    found: type[Transport] = _resolve(name, _registered_transports, _BUILTIN_TRANSPORTS, "transport")
    return found


def _resolve(name: str, registered: Mapping[str, Any], builtin: Mapping[str, str], kind: str) -> Any:
    if name in registered:
        return registered[name]
    if name in builtin:
        module, _, attribute = builtin[name].partition(":")
        return getattr(import_module(module), attribute)
    installed = {point.name: point for point in entry_points(group=f"gather_core.{kind}s")}
    if name in installed:
        return installed[name].load()
    known = sorted({*registered, *builtin, *installed})
    near = get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownPluginError(f"no {kind} is named {name!r}.{hint} Known: {', '.join(known)}")


def get_codec(spec: str) -> Codec:
    """Builds the codec that a spec names: a serializer, then what wraps its frames.

    Raises:
        UnknownPluginError: A name that nobody registered.
        SettingsError: A malformed spec or an option that the codec does not take.
    """
    first, *wrappers = parse_spec(spec)
    codec: Codec = _construct(codec_class(first.name), first)
    for part in wrappers:
        codec = _construct(codec_class(part.name), part, codec)
    return codec


def get_transport(spec: str) -> Transport:
    """Builds the transport that a spec names; see `get_codec`."""
    first, *outer = parse_spec(spec)
    if outer:
        raise SettingsError(f"transport {spec!r}: no transport here joins several others")
    transport: Transport = _construct(transport_class(first.name), first)
    return transport


def _construct(plugin: Any, part: SpecPart, *inner: object) -> Any:
    try:
        signature = inspect.signature(plugin)
        signature.bind(*inner, **part.options)
    except TypeError as exc:
        takes = ", ".join(p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY) or "no options"
        if inner and not signature.parameters:
            raise SettingsError(f"{part.name!r} cannot follow another part with '+'") from exc
        raise SettingsError(f"{part.name!r}: {exc}; it takes: {takes}") from exc
    try:
        return plugin(*inner, **part.options)
    except (TypeError, ValueError) as exc:
        raise SettingsError(f"{format_spec(part.name, part.options)!r}: {exc}") from exc
