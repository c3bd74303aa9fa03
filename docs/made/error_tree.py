"""The tree of errors as it stands in the docstring of `gather_core.errors`."""

from gather_core import errors


def error_tree() -> str:
    """Returns the tree and what is said of it."""
    head, tree, rest = (errors.__doc__ or "").split("```")
    del head
    return f"```text{tree}```\n{rest}"
