"""Golden buffers of the seed's wire, as the originals themselves write them: a 4-byte big-endian size, a pickle."""

import pickle
import struct
from collections.abc import Sequence
from typing import Any

from golden import files

PROTOCOL = 4
"""What Python 3.11 writes by default."""
MAX_SIZE = 128

JOBS: dict[str, Sequence[object]] = {
    "one_rank": [{"loss": 0.5, "ids": [1, 2, 3]}],
    "three_ranks": [None, "t\u00e9xt", {"rank": 2, "rows": [(1, 2.5), b"\0\xff", {}]}],
}
"""The objects of all ranks, by name. Add jobs, and never change one that is there."""


def part(obj: object) -> bytes:
    """What an original writes at the start of its rank's part of the buffer."""
    pickled = pickle.dumps(obj, PROTOCOL)
    return struct.pack(">I", len(pickled)) + pickled


def read_part(data: bytes) -> tuple[object, int]:
    """What an original makes of a part: the object, and how many bytes of the part are in use."""
    (nbytes,) = struct.unpack_from(">I", data)
    return pickle.loads(data[4 : 4 + nbytes]), 4 + nbytes


def vectors() -> dict[str, Any]:
    """What a new file holds: the reduced buffer, part by part."""
    return {
        name: {"max_size": MAX_SIZE, "parts": [files.to_text(part(obj).ljust(MAX_SIZE, b"\0")) for obj in objects]}
        for name, objects in JOBS.items()
    }
