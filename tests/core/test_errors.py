"""The error tree: what callers catch, and what survives the way between processes."""

import copy
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gather_core.errors as errors
from gather_core import (
    AbortedError,
    Gatherer,
    GatherError,
    PeerLostError,
    RankFailedError,
    ReduceError,
    RemoteCallError,
    RemoteDecodeError,
    RemoteEncodeError,
    SettingsError,
    SetupError,
    SlotOverflowError,
    TransportTimeoutError,
    UnknownPluginError,
)
from gather_core.errors import format_ranks, printable, shorten, summarize
from thread_gatherers import caught, on_gatherers

SAMPLES: dict[str, GatherError] = {
    "RankFailedError": RankFailedError({2: "a", 0: "b"}),
    "RemoteEncodeError": RemoteEncodeError({1: "ValueError: x"}),
    "RemoteCallError": RemoteCallError({1: "ValueError: x"}),
    "RemoteDecodeError": RemoteDecodeError({1: "DecodeError: x"}),
    "ReduceError": ReduceError({1: "'loss' is missing"}),
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


def test_a_long_message_is_passed_on_with_its_head_and_tail_and_its_length() -> None:
    text = summarize(ValueError("start" + "x" * ((9 << 20) - 8) + "end"))
    assert text.startswith("ValueError: startxxx")
    assert text.endswith("xxxend")
    assert f" ... {9 << 20} characters in all ... " in text
    assert 4000 < len(text) < 4200
    assert summarize(ValueError("x" * 4096)) == "ValueError: " + "x" * 4096


def test_the_name_of_an_error_class_is_bounded_too() -> None:
    assert len(summarize(type("E" * 10_000_000, (Exception,), {})("text"))) < 300


@given(st.text(st.characters(), max_size=300), st.integers(0, 200))
@example("\U0001f600" * 50, 101)
@example("\ud800" * 50, 101)
def test_a_shortened_text_fits_and_holds_whole_characters_of_the_original(text: str, nbytes: int) -> None:
    short = shorten(text, nbytes)
    encoded = text.encode("utf-8", "backslashreplace")
    assert len(short.encode("utf-8", "backslashreplace")) <= nbytes
    if len(encoded) <= nbytes:
        assert short == text
    elif nbytes > 60:
        head, _, tail = short.partition(f" ... {len(text)} characters in all ... ")
        assert encoded.startswith(head.encode())
        assert encoded.endswith(tail.encode())


def test_several_ranks_that_failed_alike_read_as_a_sentence() -> None:
    text = str(RemoteEncodeError(dict.fromkeys((0, 1), "SettingsError: timeout_s must be seconds")))
    assert text == "ranks 0-1 could not take part: SettingsError: timeout_s must be seconds"


def test_texts_of_other_ranks_cannot_steer_a_terminal() -> None:
    hostile = "a\x1b[2Jb\rc\0d\x7f\x9be\u202e\u2066\u061c\u2028"
    assert printable(hostile) == r"a\x1b[2Jb\x0dc\x00d\x7f\x9be\u202e\u2066\u061c\u2028"
    assert printable("lines\n\tstay, \u00e9 too") == "lines\n\tstay, \u00e9 too"


def test_what_a_rank_raises_arrives_without_control_characters() -> None:
    def body(gatherer: Gatherer) -> str:
        def fail() -> None:
            raise ValueError("\x1b]0;owned\x07")

        return str(caught(lambda: gatherer.run(fail if gatherer.rank else int)))

    assert all("\x1b" not in text and r"\x1b]0;owned\x07" in text for text in on_gatherers(2, body))
