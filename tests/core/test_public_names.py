"""What `import gather_core` offers, and what it does not load."""

import pytest

import gather_core
from fresh_python import run_python
from gather_core import errors

HEAVY = ("torch", "numpy", "msgpack", "pydantic", "zstandard", "cloudpickle", "gather_codecs", "gather_transports")


def loaded_by(statement: str) -> list[str]:
    return run_python(f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])").split()


@pytest.mark.parametrize("name", gather_core.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(gather_core, name).__doc__
    assert name in dir(gather_core)


def test_all_errors_are_public() -> None:
    assert set(errors.__all__) <= set(gather_core.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Gather'"):
        _ = gather_core.Gather


def test_public_names_are_sorted_and_listed_once() -> None:
    assert gather_core.__all__ == sorted(set(gather_core.__all__))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import gather_core") == []


def test_the_seams_load_no_plugin_and_no_torch() -> None:
    assert loaded_by("from gather_core import Codec, Transport, GatherSettings, Gatherer, Limits") == []


def test_a_gatherer_of_one_rank_needs_no_torch_and_no_pydantic() -> None:
    statement = "from gather_core import Gatherer\nassert Gatherer(transport='single').all_gather(1) == [1]"
    assert not {"torch", "pydantic", "msgpack", "zstandard"} & set(loaded_by(statement))
