"""The code blocks of the pages: which there are, and which of them are run.

Behind its language each block of code has a mark: `run`, or the name of one of `EXCUSES`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md")),
)
RUN = "run"
EXCUSES = {
    "fragment": "a part of something whose rest is the reader's, or which another test runs where it belongs",
    "hosts": "takes several hosts",
    "installs": "installs packages or sets up an environment",
    "integrations": "takes a library that an own test uses it with, where that is installed",
    "launcher": "starts ranks through a launcher; the tests start those of the page themselves, which is quicker",
    "long": "takes many seconds to minutes; the command's own tests run it smaller",
    "needs-hydra": "Hydra is not among the test dependencies; OmegaConf, which holds its configs, is",
    "needs-root": "takes root and network namespaces",
    "slurm": "takes a Slurm cluster",
}
"""Why a block is not run: the name stands behind the block's language."""
CODE = frozenset({"python", "bash", "sh", "console", "toml"})
_OTHERS = frozenset({"text", "yaml", "ini"})
_FENCE = re.compile(r"^```(\S*)(?: ([^\n]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    first_line: int
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.first_line}"


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks, in order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2] or "", found[3])
        for found in _FENCE.finditer(text)
    ]


def problem_with(block: Block) -> str | None:
    """What is wrong with the head of a block, or None."""
    if block.language in _OTHERS:
        return f"{block.language} has no mark, but this one has {block.mark!r}" if block.mark else None
    if block.language not in CODE:
        return f"say what it is: ```text for output, or one of {', '.join(sorted(CODE | _OTHERS))}"
    if block.mark == RUN:
        return None if block.language in ("python", "toml") else "only python and toml are run; give an excuse"
    if block.mark not in EXCUSES:
        return f"write ```{block.language} run, or an excuse behind it: {', '.join(EXCUSES)}"
    return None


def script_of(page: Path) -> str:
    """The Python blocks of a page that are run as one script, each line where it is on the page; "" without any."""
    lines = [""] * (page.read_text().count("\n") + 1)
    for block in blocks_of(page):
        if (block.language, block.mark) == ("python", RUN):
            code = block.text.splitlines()
            lines[block.first_line : block.first_line + len(code)] = code
    return "\n".join(lines).rstrip()


def settings_file_of(page: Path) -> str:
    """The TOML block of a page that is run: the `job.toml` of its script; "" where there is none."""
    found = [block.text for block in blocks_of(page) if (block.language, block.mark) == ("toml", RUN)]
    assert len(found) < 2, f"{page} shows two settings files"
    return "".join(found)
