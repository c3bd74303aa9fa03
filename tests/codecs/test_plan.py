"""Every number of plan.toml has a test that carries it, or a reason why there is none."""

from pathlib import Path

import pytest

from plan_marks import carried, marks, problems, table

_PLAN = Path(__file__).with_name("plan.toml")


def test_every_number_of_the_plan_has_a_test_or_a_reason() -> None:
    planned = table(_PLAN, "planned")
    assert list(planned) == list(range(1, 69))
    assert problems(planned, table(_PLAN, "excused"), carried("plan")) == []


@pytest.mark.parametrize(
    ("excused", "tested", "problem"),
    [
        ({}, {1: ["a"]}, "2 has neither a test nor a reason"),
        ({2: "why"}, {1: ["a"], 2: ["b"]}, "2 has a reason, and is tested by ['b']"),
        ({2: "why"}, {1: ["a"], 3: ["c"]}, "3 is not planned, but used by ['c']"),
        ({2: "why", 3: "why"}, {1: ["a"]}, "3 is not planned, but has a reason"),
        ({2: ""}, {1: ["a"]}, "2 says nothing"),
    ],
)
def test_what_is_missing_doubled_or_unknown_is_found(
    excused: dict[int, str], tested: dict[int, list[str]], problem: str
) -> None:
    planned = {1: "first", 2: "second"}
    assert problems(planned, excused, tested) == [problem]
    assert problems(planned, {2: "why"}, {1: ["a"]}) == []


SOURCE = """
pytestmark = [pytest.mark.plan(1), pytest.mark.gpu]

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.plan(4))])
@pytest.mark.plan(2, 3)
def test_function(x): ...

@pytest.mark.plan(5)
class TestClass:
    @pytest.mark.plan(6)
    def test_method(self): ...

def test_without(): ...
"""


def test_marks_are_found_wherever_pytest_sees_them() -> None:
    everywhere = [(1, "all of it"), (4, "test_function"), (2, "test_function"), (3, "test_function")]
    assert list(marks(SOURCE, "plan")) == [*everywhere, (5, "TestClass"), (6, "test_method")]


@pytest.mark.parametrize(
    "source",
    [
        *("@pytest.mark.plan(1)\ndef helper(): ...", "@pytest.mark.plan(1)\nclass Helper: ..."),
        "@pytest.mark.plan(1)\n@pytest.mark.skip\ndef test_it(): ...",
        "@pytest.mark.skip(reason='slow')\nclass TestIt:\n  @pytest.mark.plan(1)\n  def test_it(self): ...",
        *("@pytest.mark.plan('1')\ndef test_it(): ...", "@pytest.mark.plan(*NUMBERS)\ndef test_it(): ..."),
        *("@pytest.mark.plan(True)\ndef test_it(): ...", "def test_it():\n  pytest.mark.plan(1)"),
    ],
)
def test_a_mark_that_counts_for_nothing_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match=r"on no test|no plain number"):
        list(marks(source, "plan"))
