"""Writes the golden vectors of formats that have none yet at today's wire version.

From the root of the repository, for all formats or for those that are named:

    PYTHONPATH=tests .venv/bin/python -m golden.write [msgpack ...]

What is there stays as it is: releases have written it, and it must be read for ever.
"""

import argparse
import sys
from typing import Any

from gather_core.registry import get_codec
from gather_core.slot import WIRE_VERSION
from golden import files, seed, slots
from golden.classes import registered
from golden.objects import GOLDENS, Golden

SEED_VERSION = 1
"""Nothing can change there: the other side are DPR's and fairseq's own functions."""


def version_today(name: str) -> int:
    """The wire version that this release writes."""
    if name in ("slot", "seed"):
        return WIRE_VERSION if name == "slot" else SEED_VERSION
    spec = "raw+zstd" if name == "zstd" else name
    return get_codec(spec).wire_version


def encode(golden: Golden) -> list[str]:
    """The frames of an object, as text."""
    with registered():
        return [files.to_text(memoryview(frame).cast("B")) for frame in get_codec(golden.spec).encode(golden.make())]


def vectors(name: str) -> dict[str, Any]:
    """What a new file of a format holds."""
    if name in ("slot", "seed"):
        return slots.vectors() if name == "slot" else seed.vectors()
    return {key: {"spec": golden.spec, "frames": encode(golden)} for key, golden in GOLDENS[name].items()}


def main() -> None:
    """Writes what is missing, and says what is there already."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = (*GOLDENS, "slot", "seed")
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"one of {', '.join(known)}; all if none is given")
    for name in parser.parse_args().formats or known:
        if name not in known:
            parser.error(f"no format is called {name!r}")
        version = version_today(name)
        if version in files.versions_of(name):
            _say(f"{files.path_of(name, version).name} is there and stays as it is")
        else:
            _say(f"{files.write(name, version, vectors(name)).name} is new: commit it")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
