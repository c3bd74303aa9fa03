"""Plans in TOML: numbered sentences, each of which some test carries in a mark, or which has a reason why none does."""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

_TESTS = Path(__file__).parent


def table(plan: Path, name: str) -> dict[int, str]:
    """A table of a plan: numbers and sentences."""
    tables = tomllib.loads(plan.read_text())
    return {int(number): text for number, text in tables[name].items()}


def carried(mark: str) -> dict[int, list[str]]:
    """The tests that carry each number in `@pytest.mark.<mark>(...)`."""
    found: dict[int, list[str]] = {}
    for path in sorted(_TESTS.rglob("test_*.py")):
        source = path.read_text()
        if f"pytest.mark.{mark}" in source and path.name != "test_plan.py":
            for number, name in marks(source, mark):
                found.setdefault(number, []).append(f"{path.name}::{name}")
    return found


def problems(planned: Mapping[int, str], excused: Mapping[int, str], tested: Mapping[int, list[str]]) -> list[str]:
    """What is wrong between the plan, the reasons for what is left out, and the tests."""
    found = [f"{number} has neither a test nor a reason" for number in planned.keys() - tested.keys() - excused.keys()]
    found += [f"{number} has a reason, and is tested by {tested[number]}" for number in tested.keys() & excused.keys()]
    found += [f"{number} is not planned, but used by {tested[number]}" for number in tested.keys() - planned.keys()]
    found += [f"{number} is not planned, but has a reason" for number in excused.keys() - planned.keys()]
    found += [f"{number} says nothing" for table in (planned, excused) for number, text in table.items() if not text]
    return sorted(found)


def marks(source: str, mark: str) -> Iterator[tuple[int, str]]:
    """Each number with the test that carries it: a function, all of a class, or all of a module.

    Raises:
        ValueError: A mark that pytest does not see, or without plain numbers.
    """
    module = ast.parse(source)
    found = [*_marks_of_statements(module.body, mark)]
    num_seen = sum(1 for node in ast.walk(module) if _is_mark(node, mark))
    if len(found) != num_seen:
        raise ValueError(f"{num_seen - len(found)} marks are on no test, or on one that is always skipped")
    for call, name in found:
        for number in map(_number, call.args):
            yield number, name


def _marks_of_statements(statements: list[ast.stmt], mark: str) -> Iterator[tuple[ast.Call, str]]:
    for statement in statements:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark":
            yield from _calls(statement.value, "all of it", mark)
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef) and _is_collected(statement):
            for decorator in statement.decorator_list:
                yield from _calls(decorator, statement.name, mark)
            if isinstance(statement, ast.ClassDef):
                yield from _marks_of_statements(statement.body, mark)


def _is_collected(statement: ast.FunctionDef | ast.ClassDef) -> bool:
    prefix = "Test" if isinstance(statement, ast.ClassDef) else "test_"
    decorators = [ast.unparse(decorator) for decorator in statement.decorator_list]
    skipped = any(text.partition("(")[0] == "pytest.mark.skip" for text in decorators)
    return statement.name.startswith(prefix) and not skipped


def _calls(expression: ast.expr, name: str, mark: str) -> Iterator[tuple[ast.Call, str]]:
    """Also those of single parameters, `pytest.param(..., marks=...)`."""
    yield from ((node, name) for node in ast.walk(expression) if isinstance(node, ast.Call) and _is_mark(node, mark))


def _is_mark(node: ast.AST, mark: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{mark}"


def _number(argument: ast.expr) -> int:
    if not isinstance(argument, ast.Constant) or type(argument.value) is not int:
        raise ValueError(f"{ast.unparse(argument)} is no plain number")
    return argument.value
