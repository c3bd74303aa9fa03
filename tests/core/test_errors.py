"""The error tree: what callers catch, and what survives the way between processes."""

import copy
import pickle

import pytest

import gather_core.errors as errors
from gather_core import (
    AbortedError,
    GatherError,
    PeerLostError,
    RankFailedError,
    RemoteCallError,
    RemoteEncodeError,
    SettingsError,
    SetupError,
    SlotOverflowError,
    TransportTimeoutError,
    UnknownPluginError,
)
from gather_core.errors import format_ranks

SAMPLES: dict[str, GatherError] = {
    "RankFailedError": RankFailedError({2: "a", 0: "b"}),
    "RemoteEncodeError": RemoteEncodeError({1: "ValueError: x"}),
    "RemoteCallError": RemoteCallError({1: "ValueError: x"}),
    "SetupError": SetupError({1: "ValueError: x"}),
    "SlotOverflowError": SlotOverflowError({1: 5000, 0: 4000}, 1024),
    "TransportTimeoutError": TransportTimeoutError("late", [1], [2]),
    "PeerLostError": PeerLostError("lost", [1, 3]),
    "AbortedError": AbortedError("gone", 4),
}


@pytest.mark.parametrize("name", errors.__all__)
@pytest.mark.parametrize("how", ["pickle", "copy"])
def test_every_error_survives_pickling_with_its_attributes(name: str, how: str) -> None:
    error = SAMPLES.get(name) or getattr(errors, name)("text")
    other = pickle.loads(pickle.dumps(error)) if how == "pickle" else copy.deepcopy(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)
    assert isinstance(error, GatherError)


def test_every_error_class_of_the_module_is_public_and_documented() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes == set(errors.__all__)
    assert all(name in (errors.__doc__ or "") for name in classes)


def test_errors_can_be_caught_as_what_python_calls_them() -> None:
    assert issubclass(SettingsError, ValueError)
    assert issubclass(UnknownPluginError, LookupError)
    assert issubclass(TransportTimeoutError, TimeoutError)


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([0, 1, 2, 5], "ranks 0-2, 5"), ([2, 1], "ranks 1-2"), ([0, 2, 4], "ranks 0, 2, 4")],
)
def test_ranks_are_named_in_runs(ranks: list[int], text: str) -> None:
    assert format_ranks(ranks) == text


def test_ranks_that_failed_alike_share_a_line() -> None:
    error = RemoteCallError({3: "KeyError: a", 0: "KeyError: a", 1: "OSError: b"})
    assert str(error) == "ranks 0, 3 raised in run(): KeyError: a\nrank 1 raised in run(): OSError: b"
    assert error.failures == {3: "KeyError: a", 0: "KeyError: a", 1: "OSError: b"}


def test_an_overflow_says_what_to_do() -> None:
    text = str(SAMPLES["SlotOverflowError"])
    assert text.startswith("slots of 1024 bytes are too small: rank 0 needs 4000, rank 1 needs 5000;")
    assert 'raise slot_nbytes to 5000 or use overflow="second_round"' in text


def test_what_a_timeout_knows_is_in_its_attributes() -> None:
    error = TransportTimeoutError("late", [1], [2])
    assert (str(error), error.missing, error.behind) == ("late", (1,), (2,))
    assert TransportTimeoutError("late").missing == ()
