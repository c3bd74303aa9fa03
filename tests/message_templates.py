"""The texts that the code has for messages, as they stand in its string literals."""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import gather_codecs
import gather_core
import gather_transports

PLACEHOLDER = "…"
_PACKAGES = (gather_core, gather_codecs, gather_transports)


@cache
def templates() -> tuple[str, ...]:
    """Each literal, or f-string with its values as `PLACEHOLDER`, of the packages."""
    folders = (Path(str(package.__file__)).parent for package in _PACKAGES)
    files = (file for folder in folders for file in sorted(folder.rglob("*.py")))
    return tuple(text for file in files for text in _texts(ast.parse(file.read_text())))


def is_produced(quoted: str, texts: Sequence[str]) -> bool:
    """Whether one text has what is between the placeholders of `quoted`, in its order."""
    pieces = [piece.strip() for piece in _without_ranks(quoted).split(PLACEHOLDER) if piece.strip(" .:;,")]
    return any(_has(_without_ranks(text), pieces) for text in texts)


def pattern(quoted: str) -> re.Pattern[str]:
    """What a message that is raised must have in it."""
    pieces = (re.escape(piece).replace(r"rank\ ", r"ranks?\ ") for piece in quoted.split(PLACEHOLDER))
    return re.compile(".+".join(pieces), re.DOTALL)


def _without_ranks(text: str) -> str:
    """In the code "rank 3" is often one value."""
    return text.replace(f"rank {PLACEHOLDER}", PLACEHOLDER)


def _has(text: str, pieces: Sequence[str]) -> bool:
    at = 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return bool(pieces)


def _texts(tree: ast.AST) -> Iterator[str]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
