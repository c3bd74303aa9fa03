"""What a job chooses: the settings of one Gatherer, checked."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gather_core.codec import Codec, Limits, TensorDevice
from gather_core.deadline import seconds
from gather_core.errors import SettingsError
from gather_core.memory import align
from gather_core.spec import toml_scalar
from gather_core.transport import Transport

if TYPE_CHECKING:
    from argparse import Namespace

SettingsSource: TypeAlias = "str | PathLike[str] | Mapping[str, Any] | Namespace | GatherSettings | None"
"""Where settings may come from; `Gatherer.from_settings` says what each of them means."""

MIN_SLOT_NBYTES = 1024
DEFAULT_SLOT_NBYTES = 16 * 1024
_LENGTH_NBYTES = 8
FORBID_CODE = "GATHER_FORBID_CODE"


def code_is_forbidden() -> bool:
    """Whether this rank must not execute code that a peer chose; no setting lifts that."""
    return os.environ.get(FORBID_CODE, "0") not in ("", "0")


@dataclass(frozen=True)
class GatherSettings:
    """See `Gatherer` for what each of them means."""

    codec: str | Codec = "pickle"
    transport: str | Transport = "auto"
    slot_nbytes: int = DEFAULT_SLOT_NBYTES
    overflow: Literal["second_round", "error"] = "second_round"
    timeout_s: float | timedelta | None = None
    limits: Limits = field(default_factory=Limits)
    tensor_device: TensorDevice = "cpu"
    payload_checksum: bool | Literal["auto"] = "auto"
    key: bytes | str | None = field(default=None, repr=False)

    def check(self) -> None:
        """Checks types and ranges.

        Raises:
            SettingsError: Names the setting, its value and what is allowed.
        """
        if not isinstance(self.codec, str | Codec):
            raise SettingsError(f"codec must be a spec string or a Codec object, not {self.codec!r}")
        if not isinstance(self.transport, str | Transport):
            raise SettingsError(f"transport must be a spec string or a Transport object, not {self.transport!r}")
        if type(self.slot_nbytes) is not int or self.slot_nbytes < MIN_SLOT_NBYTES:
            raise SettingsError(f"slot_nbytes must be an int of at least {MIN_SLOT_NBYTES}, not {self.slot_nbytes!r}")
        if not _is_one_of(self.overflow, "second_round", "error"):
            raise SettingsError(f'overflow must be "second_round" or "error", not {self.overflow!r}')
        if self.timeout_s is not None:
            seconds(self.timeout_s)
        if not isinstance(self.limits, Limits):
            raise SettingsError(f"limits must be a Limits object, not {self.limits!r}")
        if not _is_one_of(self.tensor_device, "cpu", "current") and not callable(self.tensor_device):
            raise SettingsError(f'tensor_device must be "cpu", "current" or a callable, not {self.tensor_device!r}')
        if not isinstance(self.payload_checksum, bool) and not _is_one_of(self.payload_checksum, "auto"):
            raise SettingsError(f'payload_checksum must be True, False or "auto", not {self.payload_checksum!r}')
        if not isinstance(self.key, bytes | str | None):
            raise SettingsError(f"key must be bytes or a str that says where it is, not a {type(self.key).__name__}")

    def slot_nbytes_for(self, world_size: int) -> int:
        """The slot size in use: a multiple of 64, with room for one length per rank."""
        return align(max(self.slot_nbytes, MIN_SLOT_NBYTES + _LENGTH_NBYTES * world_size))

    def to_toml(self) -> str:
        """Writes them all as a table `[gather]` that `Gatherer.from_settings` reads back as equal settings.

        A timedelta is written as seconds.

        Raises:
            SettingsError: One is wrong, or an object (a Codec, a Transport, a function), which a file cannot hold.
        """
        self.check()
        lines = ["[gather]"]
        for name in (one.name for one in fields(self) if one.name != "limits"):
            value = getattr(self, name)
            if isinstance(value, bytes):
                raise SettingsError(f'a {name} cannot be in a settings file, only its place: "file:PATH" or "env:NAME"')
            if value is not None:
                lines.append(f"{name} = {_in_a_file(name, value)}")
        limits = (f"{name} = {value}" for name, value in asdict(self.limits).items())
        return "\n".join([*lines, "", "[gather.limits]", *limits, ""])


@dataclass(frozen=True)
class FailedSettings(GatherSettings):
    """What is known of settings that could not be read: enough to find the ranks that have to hear why."""

    problem: Exception = field(kw_only=True)

    def check(self) -> None:
        """Raises the problem."""
        raise self.problem


def _in_a_file(name: str, value: object) -> str:
    try:
        return toml_scalar(value.total_seconds() if isinstance(value, timedelta) else value)
    except SettingsError as exc:
        raise SettingsError(f"{name} is an object, which a settings file cannot hold: {value!r}") from exc


def _is_one_of(value: object, *words: str) -> bool:
    """Whether it is one of these strings; arrays and the like, whose `==` returns no bool, are not compared."""
    return isinstance(value, str) and value in words
