"""Copies of a module that lack one call each, to show that the tests of the module notice."""

import ast
import inspect
from collections.abc import Callable, Collection
from types import ModuleType

Wanted = Callable[[str, str], bool]
"""Whether a call is to be deleted once: gets what it is called on ("ops", "self._event") and its name."""


class _Deletion(ast.NodeTransformer):
    """Deletes the `number`-th of the calls that are wanted, and remembers the names of all."""

    def __init__(self, wanted: Wanted, keywords: Collection[str], classes: Collection[str], number: int) -> None:
        self._wanted = wanted
        self._keywords = keywords
        self._classes = classes
        self._number = number
        self.found: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self.generic_visit(node) if not self._classes or node.name in self._classes else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        return ast.Pass() if self._is_deleted(node.value) else node

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
        deleted = self._is_deleted(node.items[0].context_expr)
        self.generic_visit(node)
        return node.body if deleted else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """`work = launch(collective)` becomes `work = collective()`."""
        starts = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith(".launch")
        if starts and self._is_deleted(node.value) and isinstance(node.value, ast.Call):
            node.value = ast.Call(node.value.args[0], [], [])
        self.generic_visit(node)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        self.generic_visit(node)
        return None if node.arg in self._keywords and self._counts(f"{node.arg}=") else node

    def _is_deleted(self, node: ast.expr) -> bool:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return False
        return self._wanted(ast.unparse(node.func.value), node.func.attr) and self._counts(node.func.attr)

    def _counts(self, name: str) -> bool:
        self.found.append(name)
        return len(self.found) == self._number


def without(
    module: ModuleType, wanted: Wanted, number: int, *, keywords: Collection[str] = (), classes: Collection[str] = ()
) -> tuple[ModuleType, list[str]]:
    """Returns a copy of the module that lacks one call, and the names of all that are wanted.

    Args:
        module: Stays as it is.
        wanted: Of calls that are statements, contexts of a `with` (whose body stays), or an assigned `launch`.
        number: Which of them, from 1; 0: none.
        keywords: Arguments of any call, to be deleted too.
        classes: Looks in these alone.
    """
    deletion = _Deletion(wanted, keywords, classes, number)
    tree = ast.fix_missing_locations(deletion.visit(ast.parse(inspect.getsource(module))))
    copy = ModuleType("mutated")
    exec(compile(tree, "mutated", "exec"), vars(copy))
    return copy, deletion.found
