"""Settings from `GATHER_*` variables: which there are, and their texts as values of the settings' types."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from gather_core.codec import Limits
from gather_core.nearest import did_you_mean
from gather_core.settings import GatherSettings
from gather_core.settings_tables import Layer

PREFIX = "GATHER_"
_NESTED = "__"
_NOT_SETTINGS = ("GATHER_FORBID_CODE", "GATHER_HOST_ID", "GATHER_PROFILE", "GATHER_SETTINGS", "GATHER_WIRE")
_Tables = list[dict[str, Any]] | dict[str, Any]


class _LimitTypes(BaseModel):
    payload_nbytes: int
    num_frames: int
    frame_nbytes: int
    expansion_ratio: int
    depth: int
    container_length: int
    string_nbytes: int


class SettingTypes(BaseSettings):
    """The type as which each setting's text is read."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=_NESTED)

    codec: str | _Tables
    transport: str | _Tables
    slot_nbytes: int
    overflow: str
    timeout_s: float
    limits: _LimitTypes | str
    tensor_device: str
    payload_checksum: bool | Literal["auto"]
    key: str


class _Variables(EnvSettingsSource):
    """Takes a text for JSON only where it must be: `1` is a codec's name, if a wrong one."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        if not value.lstrip().startswith(("[", "{")):
            raise ValueError("no JSON of a table")
        return super().decode_complex_value(field_name, field, value)


def variable_layers() -> Iterator[Layer]:
    """Yields one layer per variable that is set and not empty; then warns of each `GATHER_*` that nobody reads.

    A text that is not of the setting's type is yielded as it is, for whoever checks the settings to refuse.
    """
    known = known_variables()
    present = sorted(name for name, text in os.environ.items() if name.startswith(PREFIX) and text)
    for name in present:
        if name in known and name not in _NOT_SETTINGS:
            yield Layer(f"variable {name}", _read(name))
    for name in present:
        if name not in known:
            text = f"nothing reads the variable {name}.{did_you_mean(name, known)}"  # not its value: it may be a secret
            warnings.warn(text, UserWarning, stacklevel=2)


def known_variables() -> list[str]:
    """The names of all `GATHER_*` variables that mean something."""
    settings = [PREFIX + one.name.upper() for one in fields(GatherSettings)]
    limits = [f"{PREFIX}LIMITS{_NESTED}{one.name.upper()}" for one in fields(Limits)]
    return [*settings, *limits, *_NOT_SETTINGS]


def _read(name: str) -> dict[str, Any]:
    variables = _Variables(SettingTypes)
    variables.env_vars = {name.lower(): os.environ[name]}
    return {key: _typed(value, SettingTypes.model_fields[key].annotation) for key, value in variables().items()}


def _typed(value: Any, annotation: Any) -> Any:
    if isinstance(value, dict) and annotation == SettingTypes.model_fields["limits"].annotation:
        types = _LimitTypes.model_fields
        return {key: _typed(item, types[key].annotation if key in types else str) for key, item in value.items()}
    try:
        return TypeAdapter(annotation).validate_strings(value)
    except ValidationError:  # or, from JSON, no string
        return value
