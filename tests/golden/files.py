"""The files of golden vectors: JSON with hexadecimal bytes, one file per format and wire version.

In the text of bytes, `00ff*300` stands for 300 times the bytes 00 ff, and blanks separate the pieces.
"""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_FILE_NAME = re.compile(r"([a-z]+)-([0-9]+)\.json")
_REPEATED = re.compile(rb"(.{1,256}?)\1{3,}", re.DOTALL)
_WORTH_IT_FROM_NBYTES = 48
_LIBRARIES = ("numpy", "torch", "cloudpickle", "msgpack", "zstandard")


def path_of(name: str, wire_version: int) -> Path:
    """Where the vectors of a format are."""
    return FOLDER / f"{name}-{wire_version}.json"


def versions_of(name: str) -> list[int]:
    """The wire versions of a format of which there are vectors."""
    return sorted(number for found, number in _all_files() if found == name)


def names() -> set[str]:
    """The formats of which there are vectors."""
    return {name for name, _ in _all_files()}


def _all_files() -> list[tuple[str, int]]:
    matches = (_FILE_NAME.fullmatch(path.name) for path in FOLDER.glob("*.json"))
    return [(match[1], int(match[2])) for match in matches if match]


def read(name: str, wire_version: int) -> dict[str, Any]:
    """What one file holds: `written_with`, and `vectors` by name."""
    content: dict[str, Any] = json.loads(path_of(name, wire_version).read_text())
    return content


def write(name: str, wire_version: int, vectors: dict[str, Any]) -> Path:
    """Writes a new file.

    Raises:
        FileExistsError: There is one already: what an earlier release wrote is never rewritten.
    """
    path = path_of(name, wire_version)
    head = json.dumps({"format": name, "wire_version": wire_version, "written_with": written_with()}, indent=1)
    lines = [f"  {json.dumps(key)}: {json.dumps(vector)}" for key, vector in vectors.items()]
    with path.open("x") as file:
        file.write(head.removesuffix("\n}") + ',\n "vectors": {\n' + ",\n".join(lines) + "\n }\n}\n")
    return path


def written_with() -> dict[str, str]:
    """The versions that are installed here, by name."""
    return {"python": platform.python_version()} | {library: version(library) for library in _LIBRARIES}


def to_text(data: bytes | bytearray | memoryview) -> str:
    """Bytes as text that `from_text` reads."""
    data = bytes(data)
    pieces = []
    end = 0
    for match in _REPEATED.finditer(data):
        if len(match[0]) >= _WORTH_IT_FROM_NBYTES:
            pieces += [data[end : match.start()].hex(), f"{match[1].hex()}*{len(match[0]) // len(match[1])}"]
            end = match.end()
    return " ".join(piece for piece in (*pieces, data[end:].hex()) if piece)


def from_text(text: str) -> bytes:
    """The bytes of a text."""
    pieces = (piece.partition("*") for piece in text.split())
    return b"".join(bytes.fromhex(digits) * int(count or 1) for digits, _, count in pieces)
