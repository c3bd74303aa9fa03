"""Every number of plan.toml has a test that carries it, or a reason why there is none."""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_TESTS = _HERE.parent
_MARK = "pytest.mark.plan"


def _problems(planned: Mapping[int, str], excused: Mapping[int, str], tested: Mapping[int, list[str]]) -> list[str]:
    """What is wrong between the plan, the reasons for what is left out, and the tests."""
    problems = [
        f"{number} has neither a test nor a reason" for number in planned.keys() - tested.keys() - excused.keys()
    ]
    problems += [
        f"{number} has a reason, and is tested by {tested[number]}" for number in tested.keys() & excused.keys()
    ]
    problems += [f"{number} is not planned, but used by {tested[number]}" for number in tested.keys() - planned.keys()]
    problems += [f"{number} is not planned, but has a reason" for number in excused.keys() - planned.keys()]
    problems += [f"{number} says nothing" for table in (planned, excused) for number, text in table.items() if not text]
    return sorted(problems)


def _marks(source: str) -> Iterator[tuple[int, str]]:
    """Each number with the test that carries it: a function, all of a class, or all of a module.

    Raises:
        ValueError: A mark that pytest does not see, or without plain numbers.
    """
    module = ast.parse(source)
    found = [*_marks_of_statements(module.body)]
    num_seen = sum(1 for node in ast.walk(module) if _is_mark(node))
    if len(found) != num_seen:
        raise ValueError(f"{num_seen - len(found)} marks are on no test, or on one that is always skipped")
    for call, name in found:
        for number in map(_number, call.args):
            yield number, name


def _marks_of_statements(statements: list[ast.stmt]) -> Iterator[tuple[ast.Call, str]]:
    for statement in statements:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark":
            yield from _calls(statement.value, "all of it")
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef) and _is_collected(statement):
            for decorator in statement.decorator_list:
                yield from _calls(decorator, statement.name)
            if isinstance(statement, ast.ClassDef):
                yield from _marks_of_statements(statement.body)


def _is_collected(statement: ast.FunctionDef | ast.ClassDef) -> bool:
    prefix = "Test" if isinstance(statement, ast.ClassDef) else "test_"
    decorators = [ast.unparse(decorator) for decorator in statement.decorator_list]
    skipped = any(text.partition("(")[0] == "pytest.mark.skip" for text in decorators)
    return statement.name.startswith(prefix) and not skipped


def _calls(expression: ast.expr, name: str) -> Iterator[tuple[ast.Call, str]]:
    """Also those of single parameters, `pytest.param(..., marks=...)`."""
    yield from ((node, name) for node in ast.walk(expression) if isinstance(node, ast.Call) and _is_mark(node))


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == _MARK


def _number(argument: ast.expr) -> int:
    if not isinstance(argument, ast.Constant) or type(argument.value) is not int:
        raise ValueError(f"{ast.unparse(argument)} is no plain number")
    return argument.value


def _tested() -> dict[int, list[str]]:
    tested: dict[int, list[str]] = {}
    for path in sorted(_TESTS.rglob("test_*.py")):
        source = path.read_text()
        if _MARK in source and path != Path(__file__):
            for number, name in _marks(source):
                tested.setdefault(number, []).append(f"{path.name}::{name}")
    return tested


def _table(name: str) -> dict[int, str]:
    tables = tomllib.loads((_HERE / "plan.toml").read_text())
    return {int(number): text for number, text in tables[name].items()}


def test_every_number_of_the_plan_has_a_test_or_a_reason() -> None:
    planned = _table("planned")
    assert list(planned) == list(range(1, 69))
    assert _problems(planned, _table("excused"), _tested()) == []


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
    assert _problems(planned, excused, tested) == [problem]
    assert _problems(planned, {2: "why"}, {1: ["a"]}) == []


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
    assert list(_marks(SOURCE)) == [*everywhere, (5, "TestClass"), (6, "test_method")]


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
        list(_marks(source))
