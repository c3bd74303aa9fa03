"""The table form of a spec: one canonical string, whichever way it is written."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gather_core import SettingsError
from gather_core.spec import canonical_spec, format_spec, parse_spec, toml_scalar

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
KEYS = NAMES.filter(lambda key: key != "name")
VALUES = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False), st.text("\"'\\+,:=# \n\x7f\u2028az", max_size=9)
)
TABLES = st.lists(
    st.builds(lambda name, options: {"name": name, **options}, NAMES, st.dictionaries(KEYS, VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


def tables_of(spec: str) -> list[dict[str, object]]:
    return [{"name": part.name, **part.options} for part in parse_spec(spec)]


@given(TABLES)
def test_tables_survive_the_way_through_the_canonical_spec(tables: list[dict[str, object]]) -> None:
    spec = canonical_spec(tables, "codec")
    assert tables_of(spec) == tables
    assert canonical_spec(spec, "codec") == spec
    assert canonical_spec(tables_of(spec), "codec") == spec


@given(TABLES)
def test_tables_in_a_toml_file_mean_the_same_as_the_spec(tables: list[dict[str, object]]) -> None:
    inline = ", ".join(
        "{" + ", ".join(f"{key} = {toml_scalar(value)}" for key, value in table.items()) + "}" for table in tables
    )
    read = tomllib.loads(f"codec = [{inline}]")["codec"]
    assert canonical_spec(read, "codec") == "+".join(
        format_spec(str(table["name"]), {key: value for key, value in table.items() if key != "name"})
        for table in tables
    )


def test_a_single_table_is_a_single_part() -> None:
    assert canonical_spec({"level": 3, "name": "zstd"}, "codec") == canonical_spec("zstd: level = 3", "codec")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("name"), inner, max_size=3)
    ),
)


@given(JUNK)
def test_whatever_else_is_there_is_a_spec_or_a_settings_error_that_begins_with_the_key(junk: object) -> None:
    try:
        text = canonical_spec(junk, "codec")
    except SettingsError as exc:
        text = str(exc)
    assert text.startswith("codec") or parse_spec(text)


@pytest.mark.parametrize("spec", [None, 5, b"raw", (), {1: 2}.keys()])
def test_what_is_neither_is_an_error(spec: object) -> None:
    with pytest.raises(
        SettingsError, match=r"codec must be a spec string or a list of tables|codec\[0\] must be a table"
    ):
        canonical_spec(spec, "codec")
