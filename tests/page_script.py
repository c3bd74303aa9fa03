"""The Python blocks of a page that are marked to be run, "```python run", as one script."""

import re

BLOCK = re.compile(r"^```(python[^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARK = "python run"


def runnable_script(text: str) -> str:
    """The marked blocks of a page in one script, each line where it is on the page; empty where there are none."""
    lines = [""] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        if block[1] == MARK:
            first = text.count("\n", 0, block.start(2))
            code = block[2].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines).rstrip()
