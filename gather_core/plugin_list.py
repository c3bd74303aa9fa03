"""Every codec and transport that specs may name, with what it can do and whether it works here: as data.

Loads all plug-ins, and survives those that are broken: they are listed with the reason.
"""

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from gather_core.auto_choice import AUTO_ORDER
from gather_core.codec import Trust
from gather_core.errors import GatherError, summarize
from gather_core.registry import (
    AUTO,
    KnownPlugin,
    codec_class,
    follows_another,
    known_codecs,
    known_transports,
    transport_class,
)
from gather_core.transport import Capabilities, Transport

__all__ = ["PluginInfo", "PluginOption", "list_plugins"]

_ABOUT_AUTO = (
    "All ranks choose one transport together, the first of these that works on every rank: "
    f"{', '.join(f'{one.spec} ({one.where})' for one in AUTO_ORDER)}."
)


@dataclass(frozen=True)
class PluginOption:
    """One option in a spec, `name:option=value`."""

    name: str
    default: Any = None
    """As JSON has it where it can, else as Python writes it."""
    required: bool = False


@dataclass(frozen=True)
class PluginInfo:
    """What a user wants to know of a plug-in before naming it in a spec."""

    kind: Literal["codec", "transport"]
    name: str
    source: Literal["registered", "built-in", "entry point"]
    distribution: str | None
    """Who offers it, with more than one where they clash; None: it was made in this process."""
    version: str | None
    target: str
    """`module:Class`."""
    available: bool
    reason: str | None = None
    """Why it is not available, and what to do."""
    warnings: Sequence[str] = ()
    """What else is wrong, such as an entry point that is not used."""
    doc: str = ""
    """Its docstring."""
    options: Sequence[PluginOption] = ()
    traits: Mapping[str, Any] = field(default_factory=dict)
    """Of a codec: trust, follows_another. Of a transport: its `Capabilities`. Empty where it cannot be loaded."""

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.partition("\n")[0]

    @property
    def is_broken(self) -> bool:
        """Whether it cannot even be loaded and described, which is worse than that it cannot run here."""
        return not self.available and not self.doc  # which a class has at least from its base

    def as_json(self) -> dict[str, Any]:
        """Values that `json.dumps` takes; the traits lie beside the others."""
        values = asdict(self)
        traits = values.pop("traits")
        return {**values, "summary": self.summary, **traits}


def list_plugins(name: str | None = None) -> list[PluginInfo]:
    """Loads and describes the codecs and then the transports, sorted by name; `name`: only those of that name.

    What they print while they are imported goes to stderr.
    """
    kinds: Sequence[tuple[Literal["codec", "transport"], Any, Any]] = (
        ("codec", known_codecs, codec_class),
        ("transport", known_transports, transport_class),
    )
    with contextlib.redirect_stdout(sys.stderr):
        return [
            _describe(kind, plugin, resolve)
            for kind, known, resolve in kinds
            for plugin in known()
            if name in (None, plugin.name)
        ]


def _describe(
    kind: Literal["codec", "transport"], plugin: KnownPlugin, resolve: Callable[[str], type[Any]]
) -> PluginInfo:
    info = PluginInfo(
        kind=kind,
        name=plugin.name,
        source=plugin.source,
        distribution=", ".join(origin.distribution or "" for origin in plugin.origins) or None,
        version=", ".join(origin.version or "" for origin in plugin.origins) or None,
        target=", ".join(origin.target for origin in plugin.origins),
        available=True,
        warnings=[_unused(origin.owner, plugin) for origin in plugin.unused],
    )
    if kind == "transport" and plugin.name == AUTO:
        return replace(info, doc=_ABOUT_AUTO)
    try:
        return _load(info, resolve(plugin.name))
    except GatherError as exc:
        return replace(info, available=False, reason=str(exc))
    except (Exception, SystemExit) as exc:
        return replace(info, available=False, reason=f"it cannot be described: {summarize(exc)}")


def _unused(owner: str, plugin: KnownPlugin) -> str:
    return (
        f"{owner} offers this name too, by an entry point that is not used, as the {plugin.source} one goes first; "
        "its class can be given as an object, or registered with replace=True"
    )


def _load(info: PluginInfo, cls: type[Any]) -> PluginInfo:
    reason = cls.unavailable(None) if issubclass(cls, Transport) else None
    return replace(
        info,
        available=reason is None,
        reason=reason,
        doc=inspect.getdoc(cls) or "",
        options=_options(cls),
        traits=_transport_traits(cls) if issubclass(cls, Transport) else _codec_traits(cls),
    )


def _options(cls: type[Any]) -> list[PluginOption]:
    parameters = inspect.signature(cls).parameters.values()
    return [
        PluginOption(p.name, required=True) if p.default is p.empty else PluginOption(p.name, _json_value(p.default))
        for p in parameters
        if p.kind is p.KEYWORD_ONLY
    ]


def _codec_traits(cls: type[Any]) -> dict[str, Any]:
    return {"trust": _trust(cls.trust), "follows_another": follows_another(cls)}


def _transport_traits(cls: type[Transport]) -> dict[str, Any]:
    can: Any = cls.capabilities
    if not isinstance(can, Capabilities):  # a property: it depends on the object
        return {}
    return {**vars(can), "devices": sorted(can.devices), "trust": _trust(can.trust)}


def _trust(value: object) -> str:
    """The trust of a class; "inner" where each object has its own, as what wraps another has."""
    return value.value if isinstance(value, Trust) else "inner"


def _json_value(value: object) -> object:
    is_plain = (
        value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    )
    return value if is_plain else repr(value)
