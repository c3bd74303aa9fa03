"""The settings of one Gatherer, and the timeouts they take."""

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gather_core import GatherSettings, Limits, SettingsError
from gather_core.deadline import Deadline, seconds
from gather_core.memory import align, aligned_buffer
from gather_core.settings_sources import load_settings


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("codec", 5, "spec string or a Codec"),
        ("transport", None, "spec string or a Transport"),
        ("slot_nbytes", 1023, "at least 1024"),
        ("slot_nbytes", 1024.0, "at least 1024"),
        ("slot_nbytes", True, "at least 1024"),
        ("overflow", "grow", '"second_round" or "error"'),
        ("timeout_s", 0, "greater than 0"),
        ("limits", {}, "a Limits object"),
        ("tensor_device", "cuda:1", '"cpu", "current" or a callable'),
        ("payload_checksum", "yes", 'True, False or "auto"'),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_what_is_allowed(name: str, value: object, allowed: str) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(SettingsError) as caught:
        GatherSettings(**arguments).check()
    assert str(caught.value).startswith(f"{name} must be ")
    assert repr(value) in str(caught.value)
    assert allowed in str(caught.value)


class Incomparable:
    """Comes to an error wherever it is compared."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("compared")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "name",
    ["codec", "transport", "slot_nbytes", "overflow", "timeout_s", "limits", "tensor_device", "payload_checksum"],
)
@pytest.mark.parametrize("value", [np.zeros(2), np.array(["cpu", "auto"]), Incomparable()])
def test_a_setting_that_cannot_be_compared_is_a_settings_error(name: str, value: object) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(SettingsError, match=f"{name} must be "):
        GatherSettings(**arguments).check()


@pytest.mark.parametrize("name", [one.name for one in fields(Limits)])
def test_every_limit_is_a_positive_int_that_survives_a_file_and_a_variable(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in (0, -1, True, 1.5, "7", None):
        with pytest.raises(ValueError, match=rf"Limits\.{name} must be an int of at least 1, not {wrong!r}"):
            Limits(**{name: wrong})  # type: ignore[arg-type]
    limits = Limits(**{name: 7})
    file = tmp_path / "job.toml"
    file.write_text(GatherSettings(limits=limits).to_toml())
    assert load_settings(file).limits == limits
    monkeypatch.setenv(f"GATHER_LIMITS__{name.upper()}", "9")
    assert load_settings(file).limits == Limits(**{name: 9})


def test_the_defaults_are_good() -> None:
    GatherSettings().check()
    GatherSettings(tensor_device=lambda tensor: tensor, timeout_s=timedelta(minutes=1), payload_checksum=True).check()


@given(st.integers(1024, 1 << 40), st.integers(1, 100_000))
def test_a_slot_is_a_multiple_of_64_with_room_for_a_length_per_rank(slot_nbytes: int, world_size: int) -> None:
    used = GatherSettings(slot_nbytes=slot_nbytes).slot_nbytes_for(world_size)
    assert used % 64 == 0
    assert used >= max(slot_nbytes, 1024 + 8 * world_size)
    assert used < max(slot_nbytes, 1024 + 8 * world_size) + 64


@pytest.mark.parametrize(("timeout", "expected"), [(1, 1.0), (0.5, 0.5), (timedelta(seconds=90), 90.0)])
def test_a_timeout_is_seconds_or_a_timedelta(timeout: float | timedelta, expected: float) -> None:
    assert seconds(timeout) == expected


@pytest.mark.parametrize(
    "timeout", [0, -1, float("inf"), float("nan"), True, "1", None, [], timedelta(0), timedelta(-1)]
)
def test_any_other_timeout_is_a_settings_error_that_names_it(timeout: object) -> None:
    with pytest.raises(SettingsError, match="confirm_s must be seconds or a timedelta"):
        seconds(timeout, "confirm_s")


def test_an_int_that_is_beyond_any_float_is_a_settings_error_too() -> None:
    with pytest.raises(SettingsError, match="timeout_s must be seconds or a timedelta"):
        seconds(10**400)


def test_a_deadline_counts_down_and_is_renewed() -> None:
    deadline = Deadline(60)
    assert 59 < deadline.remaining_s() <= 60
    assert not deadline.passed()
    past = Deadline(-1)
    assert past.passed()
    assert past.remaining_s() > 0
    deadline.renew()
    assert not deadline.passed()


@given(st.integers(0, 10_000))
def test_memory_is_aligned_writable_and_exactly_as_long_as_asked(nbytes: int) -> None:
    view = aligned_buffer(nbytes)
    assert len(view) == nbytes
    assert view.format == "B"
    assert not view.readonly
    assert nbytes == 0 or np.frombuffer(view, np.uint8).ctypes.data % 64 == 0
    assert align(nbytes) % 64 == 0
    assert nbytes <= align(nbytes) < nbytes + 64
