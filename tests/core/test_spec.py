"""Spec strings: what they say, that they round-trip, and that hostile ones are refused quickly."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fresh_python import run_python
from gather_core import SettingsError
from gather_core.spec import SpecPart, format_spec, parse_spec

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.text("\"'\\+,:=# \n\r\x7f\x85\u2028\ud800az", max_size=12),
)
PARTS = st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3)
SPECS = PARTS.map(lambda parts: "+".join(format_spec(name, options) for name, options in parts))
BROKEN_SPECS = st.tuples(SPECS, st.integers(0, 40), st.integers(0, 3), st.text("a1+,:=\"'\\ \n", max_size=2)).map(
    lambda edit: edit[0][: edit[1]] + edit[3] + edit[0][edit[1] + edit[2] :]
)


def respell(parts: list[SpecPart]) -> str:
    return "+".join(format_spec(part.name, part.options) for part in parts)


@given(PARTS)
@example([("zstd", {"level": 3, "path": "a+b,c=d"})])
@example([("a", {"b": "it's"})])
@example([("a", {"b": 'say "x"'})])
@example([("a", {"b": 'p+q"'}), ("c", {})])
@example([("a", {"b": "'+q\"+q\\", "c": 'x"+y'})])
@example([("a", {"b": "back\\slash"})])
@example([("a", {"b": "back\\"}), ("b", {"c": "+d"})])
@example([("a", {"b": "tab\tline\n"})])
@example([("a", {"b": 1e16, "c": 1e-7, "d": float("inf")})])
@example([("a", {"b": ""})])
@pytest.mark.plan(63)
def test_a_spec_survives_the_round_trip(parts: list[tuple[str, dict[str, object]]]) -> None:
    spec = "+".join(format_spec(name, options) for name, options in parts)
    parsed = parse_spec(spec)
    assert [(part.name, dict(part.options)) for part in parsed] == parts
    assert respell(parsed) == spec


@given(st.one_of(st.text(max_size=30), st.text("ab1+,:=\"'\\ \t\n.-_e#[]{}", max_size=30), SPECS, BROKEN_SPECS))
@example("a:b=c")
@example("a:b=1+")
@example('a:b="')
@example("a+b:c=1,d=[1")
@example("a:b=nan")
@example("a: b = 0x_f , c = +1E+5 +d")
@example("a:b=0x" + "f" * 5000)
@example("a:b=" + "1" * 5000)
@pytest.mark.plan(63)
def test_any_text_is_a_spec_with_one_canonical_spelling_or_a_settings_error(text: str) -> None:
    try:
        parts = parse_spec(text)
    except SettingsError:
        return
    assert {type(value) for part in parts for value in part.options.values()} <= {bool, int, float, str}
    canonical = respell(parts)
    again = parse_spec(canonical)
    assert repr(again) == repr(parts)  # repr: nan is not equal to itself
    assert respell(again) == canonical


@pytest.mark.parametrize(
    "spec",
    [
        *("", "+", "a+", "+a", "A", "a:", "a b", "a + b", "a:b", "a:b=", "a:=1", "a:b=c", "1a", "a++b", "a:1=2", "a-b"),
        *("a:b=1,", "a:b=1,+c", "a:,b=1", "a:b=1,,c=2", "a:b=1=2", "a:b=it's", "a:b=-", "a:b=1e+x", "a:b=True"),
    ],
)
def test_what_is_not_a_spec_is_an_error_that_shows_it(spec: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_spec(spec)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        *("[1]", "[]", "{c=1}", "{}", "2020-01-01", "07:32:00", "2020-01-01T00:00:00+01:00", "1 # why"),
        *("1\nc = 2", "\n1", "'b\nc'", '"b\nc"', '"b\\\nc"', '"""b"""', "'''b'''", "'b\r\nc'"),
    ],
)
def test_an_option_is_a_scalar_on_one_line(value: str) -> None:
    with pytest.raises(SettingsError):
        parse_spec(f"a:b={value}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("+5", 5), ("-1", -1), ("1_000", 1000), ("0xfF", 255), ("1e+5", 1e5), ("+1E-5", 1e-5)),
        *(("-inf", float("-inf")), ("true", True), ("'a\\+b'", "a\\+b"), (r'"\u00e9+\""', 'é+"')),
    ],
)
def test_scalars_are_read_as_in_toml_and_end_where_the_next_part_begins(text: str, value: object) -> None:
    assert parse_spec(f"a:b={text}+c") == [SpecPart("a", {"b": value}), SpecPart("c", {})]


@pytest.mark.parametrize("value", [None, [1], b"a", 1j])
def test_what_a_spec_cannot_hold_is_not_written_into_one(value: object) -> None:
    with pytest.raises(SettingsError, match="bool, int, float and str, not"):
        format_spec("a", {"b": value})


def test_numbers_of_other_libraries_are_written_as_plain_ones() -> None:
    import numpy as np

    assert format_spec("a", {"b": np.float64(0.5)}) == "a:b=0.5"


READ_HOSTILE_SPECS = r"""
from gather_core import SettingsError
from gather_core.spec import parse_spec

n = 300_000
blanks = " " * n
for spec in (
    "x:a=" + "+a" * n + "!", "x:a=" + blanks + "!", "x:a" + blanks + "!", "x:a=1" + blanks + "!",
    "x:a='" + "+a" * n, 'x:a="' + "\\" * n, "x:a=" + "1_" * n + "!",
):
    try:
        parse_spec(spec)
    except SettingsError:
        print("refused")
"""


def test_hostile_specs_of_300_kb_are_read_in_one_pass() -> None:
    """A pass per character would take the better part of an hour."""
    assert run_python(READ_HOSTILE_SPECS).split() == ["refused"] * 7


@pytest.mark.parametrize("spec", [None, 5, b"a", ["a"]])
def test_a_spec_is_a_string(spec: object) -> None:
    with pytest.raises(SettingsError, match="must be a string"):
        parse_spec(spec)  # type: ignore[arg-type]


def test_a_key_that_is_given_twice_is_an_error() -> None:
    with pytest.raises(SettingsError, match="level"):
        parse_spec("plain:level=1,level=2")


def test_spaces_and_quotes_are_read_as_in_toml() -> None:
    (part,) = parse_spec("a: b = 1 , c = 'x, y' , d = \"+z\"")
    assert part.options == {"b": 1, "c": "x, y", "d": "+z"}
