"""Settings from all the places where a job may keep them: merged layer by layer, and each checked where it stands."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from gather_core.codec import Limits
from gather_core.errors import GatherError, SettingsError, summarize
from gather_core.nearest import did_you_mean
from gather_core.registry import AUTO, get_codec, get_transport
from gather_core.settings import FailedSettings, GatherSettings, SettingsSource
from gather_core.settings_tables import Layer, plain, show, source_layers
from gather_core.spec import canonical_spec

_SETTINGS = tuple(one.name for one in fields(GatherSettings))
_SHOWN_PROBLEMS = 5
_LIMITS = tuple(one.name for one in fields(Limits))


def load_settings(source: SettingsSource = None, *, profile: str | None = None, **overrides: Any) -> GatherSettings:
    """Returns the settings that `Gatherer.from_settings` would use on this rank, without asking the others.

    Specs are in their canonical form; codec and transport are built once, to see that they can be, and dropped.

    Args:
        source: As for `Gatherer.from_settings`.
        profile: As for `Gatherer.from_settings`.
        overrides: As for `Gatherer.from_settings`; `group` is ignored.

    Raises:
        SettingsError: Anything is wrong; one line for each, naming the place, key, value and the nearest known name.
    """
    loaded = settings_or_failure(source, profile, overrides)
    if isinstance(loaded, FailedSettings):
        raise loaded.problem
    return loaded


def settings_or_failure(source: SettingsSource, profile: str | None, overrides: Mapping[str, Any]) -> GatherSettings:
    """Does what `load_settings` does; returns FailedSettings with all that is right where that raises."""
    reading = _Reading()
    reading.take(source_layers(source, profile))
    reading.take(_variable_layers())
    reading.take([Layer("keywords", overrides, none_counts=True, skipped=frozenset({"group"}))])
    reading.build("codec", get_codec)
    reading.build("transport", lambda spec: spec == AUTO or get_transport(spec))
    return reading.result()


def _variable_layers() -> Iterator[Layer]:
    from gather_core.settings_variables import variable_layers  # imports pydantic

    yield from variable_layers()


class _Reading:
    """What the layers have given so far."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._problems: list[Exception] = []

    def take(self, layers: Iterable[Layer]) -> None:
        """Merges layers, weakest first; what is wrong is kept for later, whatever it is."""
        try:
            for layer in layers:
                self._merge(layer)
        except SettingsError as exc:
            self._problems.append(exc)
        except Exception as exc:
            self._add_problem(f"settings cannot be read: {summarize(exc)}", exc)

    def _merge(self, layer: Layer) -> None:
        for key in layer.values:
            if key not in layer.skipped:
                try:
                    self._put(layer, key)
                except SettingsError as exc:
                    self._add_problem(f"{layer.origin}: {exc}", exc)

    def _put(self, layer: Layer, key: str) -> None:
        value = _read(layer, key)
        if key not in _SETTINGS:
            raise SettingsError(_unknown(key, value, (*_SETTINGS, *layer.skipped)))
        if value is None and not layer.none_counts:
            return
        value = _checked(key, value)
        if key == "limits":
            value = self._values.get(key, {}) | value
        self._values[key] = value
        self._origins[key] = layer.origin

    def build(self, key: str, builder: Callable[[str], object]) -> None:
        """Sees whether what a spec names can be built."""
        spec = self._values.get(key)
        if isinstance(spec, str):
            try:
                builder(spec)
            except Exception as exc:  # plug-ins raise anything
                why = exc if isinstance(exc, GatherError) else summarize(exc)
                self._add_problem(f"{self._origins[key]}: {key} = {show(spec)}: {why}", exc)

    def _add_problem(self, text: str, cause: Exception) -> None:
        problem = SettingsError(text)
        problem.__cause__ = cause.__cause__ if type(cause) is SettingsError else cause
        self._problems.append(problem)

    def result(self) -> GatherSettings:
        """The settings, or what is known of them where there was a problem."""
        values = self._values | {"limits": Limits(**self._values.get("limits", {}))}
        if not self._problems:
            return GatherSettings(**values)
        first, *others = self._problems
        problem = SettingsError(self._all_problems()) if others else first
        return FailedSettings(**values, problem=problem)

    def _all_problems(self) -> str:
        """One line for each of the first: a source with nothing but unknown keys is probably another thing."""
        shown = [str(problem) for problem in self._problems[:_SHOWN_PROBLEMS]]
        if len(self._problems) > _SHOWN_PROBLEMS:
            shown.append(
                f"and {len(self._problems) - _SHOWN_PROBLEMS} more; settings among others stand below 'gather'"
            )
        return "\n".join(shown)


def _read(layer: Layer, key: str) -> Any:
    try:
        value = layer.values[key]
        return plain(value) if key in _SETTINGS else value
    except Exception as exc:  # a mapping that computes its values, such as OmegaConf's
        raise SettingsError(f"{key} cannot be read: {summarize(exc)}") from exc


def _checked(key: str, value: Any) -> Any:
    """Returns a setting as GatherSettings takes it, but limits as a dict; a message begins with the key's path."""
    if key == "limits":
        return _checked_limits(value)
    if key in ("codec", "transport") and isinstance(value, str | list | dict):
        value = canonical_spec(value, key)
    GatherSettings(**{key: value}).check()
    return value


def _checked_limits(value: Any) -> dict[str, int]:
    if isinstance(value, Limits):
        return asdict(value)
    if not isinstance(value, dict):
        raise SettingsError(f"limits must be a table or a Limits object, not {show(value)}")
    for key, limit in value.items():
        if key not in _LIMITS:
            raise SettingsError(_unknown(key, limit, _LIMITS, "limits."))
        try:
            Limits(**{key: limit})
        except ValueError as exc:
            raise SettingsError(f"limits.{str(exc).removeprefix('Limits.')}") from exc
    return value


def _unknown(key: object, value: object, known: Iterable[str], path: str = "") -> str:
    names = sorted(known)
    return f"unknown key {path}{key} = {show(value)}.{did_you_mean(key, names)} Known: {', '.join(names)}"
