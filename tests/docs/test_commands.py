"""The command lines of the pages are too slow to be run here; what they name is there: commands, options, modules."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import typer.main

from gather_core.command_group import build_app
from page_blocks import PAGES, ROOT, blocks_of

OPTIONS_OF: dict[str, set[str]] = {}
_group: Any = typer.main.get_command(build_app())
_context = _group.make_context("gather", [], resilient_parsing=True)
for _name in _group.list_commands(_context):
    _params = _group.get_command(_context, _name).params
    OPTIONS_OF[_name] = {option for param in _params for option in (*param.opts, *param.secondary_opts)}


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Where each stands, and its words."""
    for block in (block for page in PAGES for block in blocks_of(page) if block.language == "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield block.where, words


LINES = list(command_lines())


def of_gather(words: list[str]) -> list[str]:
    """The command of `gather` and what follows it; empty where the line is none of gather's."""
    if words[0] == "gather":
        return words[1:]
    return words[words.index("gather_core") + 1 :] if "gather_core" in words else []


def problem_with(words: list[str]) -> str | None:
    name, *arguments = of_gather(words)
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    if name not in OPTIONS_OF:
        return f"no command {name}"
    return ", ".join(sorted(options - OPTIONS_OF[name])) or None


@pytest.mark.parametrize(("where", "words"), [line for line in LINES if of_gather(line[1])], ids=str)
def test_commands_of_gather_exist_with_their_options(where: str, words: list[str]) -> None:
    assert problem_with(words) is None, where


def test_a_wrong_command_or_option_is_noticed() -> None:
    assert problem_with(["gather", "doctor", "--strict"]) is None
    assert problem_with(["gather", "doctor", "--lenient"]) == "--lenient"
    assert problem_with(["torchrun", "-m", "gather_core", "nurse"]) == "no command nurse"


def test_modules_and_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    modules = {word for _, words in LINES for word in words if re.fullmatch(r"gather_bench\.\w+", word)}
    made = {words[1] for _, words in LINES if words[0] == "make"}
    assert modules
    assert made
    assert all(find_spec(module) for module in modules)
    assert made <= targets
