"""Codecs and transports by name.

Names resolve to what was registered by hand, then to the built-ins, then to entry points of installed distributions.
Nothing is imported before it is used.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, Literal

from gather_core import __version__
from gather_core.codec import Codec, Trust
from gather_core.distributions import (
    Origin,
    offers,
    offers_of_name,
    origin_of_class,
    origin_of_entry_point,
    repair,
)
from gather_core.errors import SettingsError, UnknownPluginError, summarize
from gather_core.nearest import did_you_mean
from gather_core.spec import NAME, SpecPart, format_spec, parse_spec
from gather_core.transport import Transport

AUTO = "auto"
"""In place of a transport's name: all ranks choose one together. No class has this name."""
JOINT = "hierarchical"
"""The transport that `inside+between` stands for. Its class takes two transports by position: the one inside a host,
then the one between hosts, both as their own parts of the spec say."""
_OURS = "gather-core"


@dataclass(frozen=True)
class KnownPlugin:
    """A name that specs may use, and who offers it; nothing has been loaded."""

    name: str
    source: Literal["registered", "built-in", "entry point"]
    origins: Sequence[Origin]
    """Who offers it; more than one: distributions clash, and using the name is an error."""
    unused: Sequence[Origin] = ()
    """Entry points of the same name that are not used, because what was registered and what is built in go first."""


class _Plugins:
    """The plug-ins of one kind."""

    def __init__(self, kind: str, base: type, builtin: Mapping[str, str], *, reserved: Mapping[str, str]) -> None:
        self.reserved = reserved
        """Names that a user may write but no class can have -> what they mean."""
        self.registered: dict[str, Any] = {}
        self._kind = kind
        self._base = base
        self._group = f"gather_core.{kind}s"
        self._builtin = {name: EntryPoint(name, target, self._group) for name, target in builtin.items()}

    def register(self, name: object, plugin: object, *, replace: bool) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SettingsError(f"{_name_rule(self._kind)}, not {name!r}")
        if name in self.reserved:
            raise SettingsError(f"{self._kind} {name!r} is reserved: {self.reserved[name]}")
        if problem := self._problem(name, plugin):
            raise SettingsError(f"{self._kind} {name!r} {problem}")
        if not replace:
            self._check_free(name, plugin)
        self.registered[name] = plugin

    def _check_free(self, name: str, plugin: Any) -> None:
        """Refuses a name that something else has; a class may register the name under which it is found anyway."""
        holders = self._holders(name)
        here = f"{plugin.__module__}:{plugin.__qualname__}"
        is_its_own = here in {origin.target for origin in holders} and name not in self.registered
        if holders and not is_its_own and self.registered.get(name) is not plugin:
            raise SettingsError(
                f"the {self._kind} name {name!r} is taken by {_list(holders)}, so {origin_of_class(plugin)} cannot "
                "have it; give it another name, or pass replace=True to override it in this process"
            )

    def _holders(self, name: str) -> list[Origin]:
        """Who has a name."""
        if name in self.registered:
            return [origin_of_class(self.registered[name])]
        points = [self._builtin[name]] if name in self._builtin else offers_of_name(self._group, name)
        return [self._origin(point) for point in points]

    def resolve(self, name: str) -> Any:
        if name in self.registered:
            return self.registered[name]
        if name in self._builtin:
            return self._load(self._builtin[name])
        if name in self.reserved:
            raise SettingsError(f"{self._kind} {name!r} stands alone, without options: {self.reserved[name]}")
        points = offers_of_name(self._group, name)
        if not points:
            raise self._unknown(name)
        if len(points) > 1:
            raise SettingsError(
                f"the {self._kind} name {name!r} is offered by {_list([self._origin(point) for point in points])}: "
                f"uninstall all but one, or choose with register_{self._kind}({name!r}, <class>, replace=True)"
            )
        return self._load(points[0])

    def _unknown(self, name: str) -> UnknownPluginError:
        known = sorted({*self.registered, *self._builtin, *self.reserved, *offers(self._group)})
        hint = did_you_mean(name, known)
        return UnknownPluginError(f"no {self._kind} is named {name!r}.{hint} Known: {', '.join(known)}")

    def _load(self, point: EntryPoint) -> Any:
        origin = self._origin(point)
        what = f"{self._kind} {point.name!r} of {origin}"
        try:
            plugin = point.load()
        except (Exception, SystemExit) as exc:
            todo = repair(point, origin.owner, exc)
            raise SettingsError(f"{what} cannot be loaded: {summarize(exc)}; {todo}") from exc
        if problem := self._problem(point.name, plugin):
            raise SettingsError(f"{what} {problem}; upgrade or uninstall {origin.owner}, or ask its authors")
        return plugin

    def _problem(self, name: str, plugin: object) -> str | None:
        """What keeps a thing from being the plug-in of that name."""
        if not isinstance(plugin, type) or not issubclass(plugin, self._base):
            return f"must be a subclass of {self._base.__name__}, not {plugin!r}"
        if not NAME.fullmatch(name):
            return f"can be named by no spec: {_name_rule(self._kind)}"
        if lacks := ", ".join(sorted(getattr(plugin, "__abstractmethods__", ()))):
            return f"cannot be built: {plugin.__qualname__} does not define {lacks}"
        own_name = getattr(plugin, "name", None)
        if own_name is None:
            return f"has no name: set {plugin.__qualname__}.name = {name!r}, as specs show it"
        if own_name != name:
            return f"is called {own_name!r} by its class: {plugin.__qualname__}.name must be {name!r}, as specs show it"
        if issubclass(plugin, Transport) and not hasattr(plugin, "capabilities"):
            return f"does not say what it can: set {plugin.__qualname__}.capabilities to a Capabilities object"
        trust = inspect.getattr_static(plugin, "trust", Trust.DATA)  # as it is written: it may be a property
        if not isinstance(trust, Trust | property):
            return f"has no valid trust: {plugin.__qualname__}.trust must be Trust.DATA or Trust.CODE, not {trust!r}"
        return None

    def _origin(self, point: EntryPoint) -> Origin:
        is_builtin = point.dist is None and self._builtin.get(point.name) == point
        return Origin(point.value, _OURS, __version__) if is_builtin else origin_of_entry_point(point)

    def known(self) -> list[KnownPlugin]:
        offered = {name: tuple(map(self._origin, points)) for name, points in offers(self._group).items()}
        names = sorted({*self.registered, *self._builtin, *self.reserved, *offered})
        return [self._known(name, offered.get(name, ())) for name in names]

    def _known(self, name: str, offered: tuple[Origin, ...]) -> KnownPlugin:
        foreign = tuple(origin for origin in offered if origin.distribution != _OURS)
        if name in self.registered:
            origin = origin_of_class(self.registered[name])
            unused = tuple(other for other in foreign if other.target != origin.target)
            return KnownPlugin(name, "registered", (origin,), unused)
        if name in self._builtin:
            return KnownPlugin(name, "built-in", (self._origin(self._builtin[name]),), foreign)
        if name in self.reserved:
            return KnownPlugin(name, "built-in", (Origin(name, _OURS, __version__),), foreign)
        return KnownPlugin(name, "entry point", offered)


def _name_rule(kind: str) -> str:
    return f"the name of a {kind} must be of a-z, 0-9 and _ and start with a letter"


def _list(origins: Sequence[Origin]) -> str:
    return " and ".join(map(str, origins))


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
        "hierarchical": "gather_transports.hierarchical:HierarchicalTransport",
        "mpi": "gather_transports.mpi:MpiTransport",
        "nccl": "gather_transports.nccl:NcclTransport",
        "shm": "gather_transports.shm:ShmTransport",
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
        SettingsError: The name is not one that a spec can hold (`[a-z][a-z0-9_]*`); `codec` is not a subclass of
            `Codec`, is abstract, or has another `name`; or the name is taken by another class, a built-in or an
            installed entry point, and `replace` is False. Nothing has changed.
    """
    _codecs.register(name, codec, replace=replace)


def register_transport(name: str, transport: type[Transport], *, replace: bool = False) -> None:
    """Makes a transport class known by name; see `register_codec`. `auto` cannot be one."""
    _transports.register(name, transport, replace=replace)


def known_codecs() -> list[KnownPlugin]:
    """The codecs that a spec may name, sorted; loads none of them."""
    return _codecs.known()


def known_transports() -> list[KnownPlugin]:
    """The transports that a spec may name, sorted, `auto` included; loads none of them."""
    return _transports.known()


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
    if follows_another(innermost):
        raise SettingsError(f"{first.name!r} follows another codec, as in 'msgpack+{first.name}'")
    codec: Codec = _construct(innermost, first)
    for part in wrappers:
        codec = _construct(codec_class(part.name), part, codec)
    return codec


def follows_another(codec: type[Codec]) -> bool:
    """Whether the constructor needs an argument by position: the codec inside."""
    return _takes_by_position(codec)


def _takes_by_position(plugin: type[Any]) -> bool:
    return any(p.default is p.empty for p in _by_position(inspect.signature(plugin)))


def _by_position(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def get_transport(spec: str) -> Transport:
    """Builds the transport that a spec names, or that joins the two that it names: "inside a host + between hosts".

    Raises:
        UnknownPluginError: A name that nobody registered.
        SettingsError: As for `get_codec`.
    """
    parts = parse_spec(spec)
    classes = transport_classes(spec)
    if len(parts) == 1:
        if _takes_by_position(classes[0]):
            raise SettingsError(f"transport {spec!r} joins two others: name those, as in 'shm+gloo'")
        alone: Transport = _construct(classes[0], parts[0])
        return alone
    joint, *joined = classes
    inner, outer = (_construct(cls, part) for cls, part in zip(joined, parts, strict=True))
    both: Transport = _construct(joint, SpecPart(JOINT, {}), inner, outer)
    return both


def transport_classes(spec: str) -> Sequence[type[Transport]]:
    """Returns the class that a spec names; or the one that joins two, the one inside a host, the one between hosts.

    Raises:
        UnknownPluginError, SettingsError: As for `get_transport`; the options are not looked at.
    """
    parts = parse_spec(spec)
    if len(parts) == 1:
        return [transport_class(parts[0].name)]
    joined = [transport_class(part.name) for part in parts]
    if len(parts) > 2:
        raise SettingsError(f"transport {spec!r}: '+' joins two transports, one inside a host and one between hosts")
    try:
        return [transport_class(JOINT), *joined]
    except UnknownPluginError as exc:
        raise UnknownPluginError(
            f"transport {spec!r}: what joins two, a transport {JOINT!r}, is not installed"
        ) from exc


def _construct(plugin: type[Any], part: SpecPart, *inner: object) -> Any:
    signature = inspect.signature(plugin)
    try:
        signature.bind(*inner, **part.options)
    except TypeError as exc:
        if inner and not _by_position(signature):
            raise SettingsError(f"{part.name!r} cannot follow another part with '+'") from exc
        takes = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        unknown = [key for key in part.options if key not in takes]
        near = did_you_mean(unknown[0], takes) if unknown else ""
        raise SettingsError(f"{part.name!r}: {exc}; it takes: {', '.join(takes) or 'no options'}.{near}") from exc
    try:
        return plugin(*inner, **part.options)
    except Exception as exc:
        why = exc if isinstance(exc, TypeError | ValueError) else summarize(exc)
        raise SettingsError(f"{format_spec(part.name, part.options)!r}: {why}") from exc
