"""Findings as text files: what was wrong, the decoder, and the input in hexadecimal, one frame a line."""

import zlib
from pathlib import Path

from fuzz.branches import Branches
from fuzz.byte_mutations import Case
from fuzz.engine import Finding
from fuzz.oracle import Outcome, examine, watching
from fuzz.targets import Target


def save(finding: Finding, folder: Path) -> Path:
    """Writes a finding into a folder; returns the file."""
    digest = zlib.crc32(b"\0".join(finding.case))
    path = folder / f"{finding.target}-{digest:08x}.txt"
    path.write_text(to_text(finding))
    return path


def to_text(finding: Finding) -> str:
    """The lines of a finding: comments, the target, the frames."""
    comments = "".join(f"# {line}\n" for line in finding.problem.splitlines())
    return f"{comments}{finding.target}\n" + "".join(f"{frame.hex()}\n" for frame in finding.case)


def read_case(path: Path) -> tuple[str, Case]:
    """The target and the input of a saved finding."""
    name, *frames = (line for line in path.read_text().splitlines() if not line.startswith("#"))
    return name, tuple(map(bytes.fromhex, frames))


def replay(target: Target, case: Case) -> Outcome:
    """Runs one input as the fuzzer does."""
    with watching():
        return examine(target, case, Branches(target.places))
