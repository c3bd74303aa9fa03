"""Codecs and transports by name.

Names resolve to what was registered by hand, then to the built-ins, then to entry points of installed distributions.
Nothing is imported before it is used.
"""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gather_core.codec import Codec
from gather_core.errors import SettingsError, UnknownPluginError, summarize
from gather_core.spec import NAME, SpecPart, format_spec, parse_spec
from gather_core.transport import Transport

AUTO = "auto"
"""In place of a transport's name: all ranks choose one together. No class has this name."""


class _Plugins:
    """The plug-ins of one kind."""

    def __init__(self, kind: str, base: type, builtin: Mapping[str, str], *, reserved: Mapping[str, str]) -> None:
        self._kind = kind
        self._base = base
        self._group = f"gather_core.{kind}s"
        self._builtin = {name: EntryPoint(name, target, self._group) for name, target in builtin.items()}
        self._reserved = reserved
        """Names that a user may write but no class can have -> what they mean."""
        self.registered: dict[str, Any] = {}

    def register(self, name: object, plugin: object, *, replace: bool) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SettingsError(
                f"the name of a {self._kind} must be of a-z, 0-9 and _ and start with a letter, not {name!r}"
            )
        if name in self._reserved:
            raise SettingsError(f"{self._kind} {name!r} is reserved: {self._reserved[name]}")
        self._check_class(plugin, f"{self._kind} {name!r}")
        taken = self.registered.get(name) or (self._builtin[name].value if name in self._builtin else None)
        if taken and not replace:
            raise SettingsError(f"the {self._kind} {name!r} is taken by {taken}; pass replace=True to override it")
        self.registered[name] = plugin

    def resolve(self, name: str) -> Any:
        if name in self.registered:
            return self.registered[name]
        if name in self._builtin:
            return self._load(self._builtin[name])
        if name in self._reserved:
            raise SettingsError(f"{self._kind} {name!r} stands alone, without options: {self._reserved[name]}")
        installed = {point.name: point for point in entry_points(group=self._group)}
        if name in installed:
            return self._load(installed[name])
        known = sorted({*self.registered, *self._builtin, *self._reserved, *installed})
        near = get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownPluginError(f"no {self._kind} is named {name!r}.{hint} Known: {', '.join(known)}")

    def _load(self, point: EntryPoint) -> Any:
        owner = point.dist.name if point.dist else "gather-core"
        what = f"{self._kind} {point.name!r}, entry point {point.value!r} of distribution {owner!r},"
        try:
            plugin = point.load()
        except Exception as exc:
            raise SettingsError(f"{what} cannot be loaded: {summarize(exc)}") from exc
        self._check_class(plugin, what)
        return plugin

    def _check_class(self, plugin: object, what: str) -> None:
        if not isinstance(plugin, type) or not issubclass(plugin, self._base):
            raise SettingsError(f"{what} must be a subclass of {self._base.__name__}, not {plugin!r}")


_codecs = _Plugins(
    "codec",
    Codec,
    {
        "auto": "gather_codecs.auto:AutoCodec",
        "cloudpickle": "gather_codecs.cloudpickle5:CloudpickleCodec",
        "msgpack": "gather_codecs.messagepack:MessagePackCodec",
        "pickle": "gather_codecs.pickle5:PickleCodec",
        "raw": "gather_codecs.raw:RawCodec",
        "zstd": "gather_codecs.zstandard_frames:ZstdCodec",
    },
    reserved={},
)
_transports = _Plugins(
    "transport",
    Transport,
    {
        "all_gather_object": "gather_transports.torch_objects:AllGatherObjectTransport",
        "gloo": "gather_transports.gloo:GlooTransport",
        "nccl": "gather_transports.nccl:NcclTransport",
        "single": "gather_transports.single:SingleTransport",
        "threads": "gather_transports.threads:ThreadsTransport",
    },
    reserved={AUTO: "it lets all ranks choose a transport together"},
)


def register_codec(name: str, codec: type[Codec], *, replace: bool = False) -> None:
    """Makes a codec class known by name.

    Its options are the keyword-only parameters of its constructor. A codec that follows another with `+` takes that
    one, an object, as the only parameter by position.

    Raises:
        SettingsError: The name is not one that a spec can hold (`[a-z][a-z0-9_]*`), `codec` is not a subclass of
            `Codec`, or the name is taken and `replace` is False. Nothing has changed.
    """
    _codecs.register(name, codec, replace=replace)


def register_transport(name: str, transport: type[Transport], *, replace: bool = False) -> None:
    """Makes a transport class known by name; see `register_codec`. `auto` cannot be one."""
    _transports.register(name, transport, replace=replace)


def codec_class(name: str) -> type[Codec]:
    """Returns the codec class of that name.

    Raises:
        UnknownPluginError: Nobody registered it.
        SettingsError: It cannot be imported, or a distribution's entry point names something else than a codec class.
    """
    found: type[Codec] = _codecs.resolve(name)
    return found


def transport_class(name: str) -> type[Transport]:
    """Returns the transport class of that name.

    Raises:
        UnknownPluginError: Nobody registered it.
        SettingsError: As for `codec_class`; or the name is `auto`.
    """
    found: type[Transport] = _transports.resolve(name)
    return found


def get_codec(spec: str) -> Codec:
    """Builds the codec that a spec names: a serializer, then what wraps its frames.

    Raises:
        UnknownPluginError: A name that nobody registered.
        SettingsError: A malformed spec, an option that the codec does not take, or parts in an order that makes no
            sense; or as for `codec_class`.
    """
    first, *wrappers = parse_spec(spec)
    innermost = codec_class(first.name)
    if _follows_another(innermost):
        raise SettingsError(f"{first.name!r} follows another codec, as in 'msgpack+{first.name}'")
    codec: Codec = _construct(innermost, first)
    for part in wrappers:
        codec = _construct(codec_class(part.name), part, codec)
    return codec


def _follows_another(codec: type[Codec]) -> bool:
    """Whether the constructor needs an argument by position: the codec inside."""
    return any(p.default is p.empty for p in _by_position(inspect.signature(codec)))


def _by_position(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def get_transport(spec: str) -> Transport:
    """Builds the transport that a spec names; see `get_codec`."""
    first, *outer = parse_spec(spec)
    if outer:
        raise SettingsError(f"transport {spec!r}: no transport here joins several others")
    transport: Transport = _construct(transport_class(first.name), first)
    return transport


def _construct(plugin: type[Any], part: SpecPart, *inner: object) -> Any:
    signature = inspect.signature(plugin)
    try:
        signature.bind(*inner, **part.options)
    except TypeError as exc:
        if inner and not _by_position(signature):
            raise SettingsError(f"{part.name!r} cannot follow another part with '+'") from exc
        takes = ", ".join(p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY) or "no options"
        raise SettingsError(f"{part.name!r}: {exc}; it takes: {takes}") from exc
    try:
        return plugin(*inner, **part.options)
    except (TypeError, ValueError) as exc:
        raise SettingsError(f"{format_spec(part.name, part.options)!r}: {exc}") from exc
