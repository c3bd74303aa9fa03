"""Classes of the user's that the msgpack codec keeps: each under a tag, on every rank the same."""

import dataclasses
import enum
import json
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gather_codecs.message_paths import Refusal
from gather_codecs.message_types import is_built_in
from gather_core.errors import DecodeError, SettingsError, shorten, summarize

_TAG = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")
_TAGS_NBYTES = 1000
_lock = threading.Lock()


def register_type(
    tag: str,
    cls: type,
    to: Callable[[Any], object] | None = None,
    from_: Callable[[Any], object] | None = None,
    *,
    replace: bool = False,
) -> None:
    """Teaches msgpack codecs of this process a class; exactly that one, not its subclasses.

    Call it on every rank, before the Gatherer is made: ranks whose registrations differ are told so on construction.
    Enums, namedtuples and dataclasses need no functions. Their members or fields travel by name, values of a Flag as
    ints, and dataclasses are rebuilt without `__init__` and `__post_init__`; an instance that has lost a field, or has
    attributes beside its fields, is refused. May be called from any thread.

    Args:
        tag: The name of the class on the wire: 1 to 100 of A-Z, a-z, 0-9, `_`, `.`, `:`, `/`, `-`.
        cls: The class; one that msgpack does not keep by itself.
        to: Returns an object as something that msgpack keeps: plain data, arrays, tensors, objects of registered
            classes.
        from_: Returns an equal object of exactly `cls`, from what `to` returned. Decoding runs it on what other ranks
            sent, so it must do nothing but build.
        replace: Whether to put this in the place of what has this tag or this class, as a reloaded module does.

    Raises:
        SettingsError: A bad tag; no class, or one that is kept already; only one of `to` and `from_`, or neither for
            a class that needs them; or the tag or class is taken and `replace` is False. Nothing has changed.
    """
    global _types
    if type(tag) is not str or not _TAG.fullmatch(tag):
        raise SettingsError(f"tag must be 1 to 100 of A-Z, a-z, 0-9 and _.:/-, not {tag!r:.120}")
    entry = _entry(tag, cls, to, from_)
    with _lock:
        _types = _types.with_entry(entry, replace=replace)


def registered_types() -> "RegisteredTypes":
    """What is registered now; later registrations do not change it."""
    return _types


@dataclasses.dataclass(frozen=True)
class RegisteredType:
    """One class, and how it is taken apart and built."""

    tag: str
    cls: type
    to: Callable[[Any], object]
    from_: Callable[[Any], object]
    layout: tuple[str, ...]
    """What must be the same on all ranks beside the tag."""

    def lower(self, obj: object) -> object:
        """What `to` returns.

        Raises:
            Refusal: It raised.
        """
        try:
            return self.to(obj)
        except Refusal:
            raise
        except Exception as exc:
            raise Refusal(obj, f"taking apart this {self.tag!r} failed: {summarize(exc)}") from exc

    def rebuild(self, data: object) -> object:
        """What `from_` makes of it.

        Raises:
            DecodeError: It raised, or made something of another class.
        """
        try:
            obj = self.from_(data)
        except Exception as exc:
            raise DecodeError(f"building a {self.tag!r} failed: {summarize(exc)}") from exc
        if type(obj) is not self.cls:
            raise DecodeError(f"from_ of {self.tag!r} made a {type(obj).__qualname__}, not a {self.cls.__qualname__}")
        return obj


class RegisteredTypes:
    """What was registered up to some moment; never changes, so that reading it takes no lock."""

    def __init__(self, entries: tuple[RegisteredType, ...] = ()) -> None:
        self._entries = entries
        self.by_class: Mapping[type, RegisteredType] = MappingProxyType({entry.cls: entry for entry in entries})
        self.by_tag: Mapping[str, RegisteredType] = MappingProxyType({entry.tag: entry for entry in entries})

    def with_entry(self, new: RegisteredType, *, replace: bool) -> "RegisteredTypes":
        """These and one more."""
        taken = [entry for entry in self._entries if entry.tag == new.tag or entry.cls is new.cls]
        if taken and not replace:
            what = " and ".join(f"{entry.tag!r} is {entry.cls.__qualname__}" for entry in taken)
            raise SettingsError(
                f"{new.tag!r} cannot be {new.cls.__qualname__}: {what} already; change the tag, or pass replace=True"
            )
        return RegisteredTypes((*(entry for entry in self._entries if entry not in taken), new))

    def fingerprint(self) -> str:
        """Equal for equal registrations, in whatever order they were made; empty if there are none."""
        layouts = sorted((entry.tag, *entry.layout) for entry in self._entries)
        digest = zlib.crc32(json.dumps(layouts).encode())
        tags = shorten(", ".join(tag for tag, *_ in layouts), _TAGS_NBYTES)
        return f" with types {tags} ({digest:08x})" if layouts else ""


_types = RegisteredTypes()


def _entry(
    tag: str, cls: type, to: Callable[[Any], object] | None, from_: Callable[[Any], object] | None
) -> RegisteredType:
    if not isinstance(cls, type):
        raise SettingsError(f"only classes can be registered, not {cls!r:.80}")
    if is_built_in(cls):
        raise SettingsError(f"msgpack keeps {cls.__qualname__} already")
    if to is None and from_ is None:
        return _by_kind(tag, cls)
    if not callable(to) or not callable(from_):
        raise SettingsError(
            f"{tag!r} needs both functions: to, which takes objects apart, and from_, which builds them"
        )
    return RegisteredType(tag, cls, to, from_, ("functions", cls.__qualname__))


def _by_kind(tag: str, cls: type) -> RegisteredType:
    if issubclass(cls, enum.Flag):
        layout = _layout("flag", cls, {name: member.value for name, member in cls.__members__.items()})
        return RegisteredType(tag, cls, _lower_flag, lambda value: _flag(cls, value), layout)
    if issubclass(cls, enum.Enum):
        members = cls.__members__
        return RegisteredType(tag, cls, _lower_member, members.__getitem__, _layout("enum", cls, members))
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        names: tuple[str, ...] = cls._fields
        layout = _layout("namedtuple", cls, names)
        return RegisteredType(tag, cls, lambda obj: _lower_row(obj, names), lambda data: _row(cls, data, names), layout)
    if dataclasses.is_dataclass(cls) and _is_made_of_attributes(cls):
        names = tuple(field.name for field in dataclasses.fields(cls))
        layout = _layout("dataclass", cls, names)
        return RegisteredType(
            tag, cls, lambda obj: _lower_fields(obj, names), lambda data: _with_fields(cls, data, names), layout
        )
    raise SettingsError(f"{cls.__qualname__} is no Enum, namedtuple or plain dataclass: give to and from_")


def _layout(kind: str, cls: type, names: object) -> tuple[str, ...]:
    items = names.items() if isinstance(names, dict) else names
    return (kind, cls.__qualname__, *map(str, items))  # type: ignore[call-overload]


def _is_made_of_attributes(cls: type) -> bool:
    """Whether there is nothing to an object but its attributes: not a subclass of dict or Exception, not abstract."""
    try:
        object.__new__(cls)
    except TypeError:
        return False
    return True


def _lower_member(obj: enum.Enum) -> object:
    if type(obj).__members__.get(obj.name) is not obj:
        raise Refusal(obj, "it is no member of its Enum by name")
    return obj.name


def _lower_flag(obj: enum.Flag) -> object:
    if type(obj.value) is not int or type(obj)(obj.value) is not obj:
        raise Refusal(obj, "its value does not give this Flag back")
    return obj.value


def _flag(cls: type[enum.Flag], value: object) -> object:
    if type(value) is not int:
        raise ValueError("the value of a Flag is an int")
    return cls(value)


def _lower_row(obj: Any, names: tuple[str, ...]) -> object:
    if len(obj) != len(names) or getattr(obj, "__dict__", None):
        raise Refusal(obj, f"it is not just its fields, {', '.join(names)}")
    return dict(zip(names, tuple.__iter__(obj), strict=True))


def _row(cls: Any, data: Any, names: tuple[str, ...]) -> object:
    _check_names(data, names)
    return tuple.__new__(cls, [data[name] for name in names])


def _lower_fields(obj: Any, names: tuple[str, ...]) -> object:
    # Past a __getstate__ of the class, which may leave things out.
    state: Any = object.__getstate__(obj)
    in_dict, in_slots = state if isinstance(state, tuple) else (state, None)
    fields = {**(in_dict or {}), **(in_slots or {})}
    if fields.keys() != set(names):
        odd = ", ".join(sorted(map(str, fields.keys() ^ set(names))))
        raise Refusal(obj, f"its attributes are not its fields ({odd}); register it with to and from_")
    return fields


def _with_fields(cls: type, data: Any, names: tuple[str, ...]) -> object:
    _check_names(data, names)
    obj: object = object.__new__(cls)
    for name, value in data.items():
        object.__setattr__(obj, name, value)
    return obj


def _check_names(data: Any, names: tuple[str, ...]) -> None:
    if type(data) is not dict or data.keys() != set(names):
        raise ValueError(
            f"it has no fields {', '.join(names)}" if type(data) is not dict else f"fields {list(data)!r:.80}"
        )
