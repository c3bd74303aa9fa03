"""One rank that looks which host it is on: `python host_rank.py FOLDER RANK WORLD_SIZE [clone]`.

Ranks meet in a folder, which works across namespaces, and torch is not imported. What each finds is in a file.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from gather_core import host_identity
from gather_core.host_identity import HostProbe
from gather_core.local_store import LocalBell, LocalStore
from gather_core.transport import GroupContext, Store


class FolderStore(LocalStore):
    """A file per key; only what the probe asks."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / ("key " + key.replace("/", " "))

    def compare_set(self, key: str, expected: Any, desired: Any, /) -> bytes:
        """Sets a key that is not set yet; returns what it then holds."""
        written = self._folder / f"written by {os.getpid()}-{time.monotonic_ns()}"
        written.write_text(desired)
        try:
            os.link(written, self._path(key))
        except FileExistsError:
            return self._path(key).read_bytes()
        finally:
            written.unlink()
        return desired.encode() if isinstance(desired, str) else bytes(desired)

    def delete_key(self, key: str, /) -> bool:
        """Deletes a key."""
        self._path(key).unlink()
        return True


def context_of(rank: int, world_size: int, store: Store) -> GroupContext:
    """A rank's place in a group that knows nothing of hosts."""
    return GroupContext(rank, world_size, store, LocalBell(), tuple(range(world_size)))


def _be_a_clone() -> None:
    """Reads and draws what each other clone reads and draws."""
    host_identity.kernel_identity = lambda: "boot id, namespaces, memory"
    os.urandom = lambda size: b"x" * size


def _main() -> None:
    folder, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if sys.argv[4:] == ["clone"]:
        _be_a_clone()
    probe = HostProbe()
    try:
        found = probe.look(context_of(rank, world_size, FolderStore(folder)))
        (folder / f"found by {rank}").write_text(found)
        deadline = time.monotonic() + 30  # a socket must be there until all have looked
        while len(list(folder.glob("found by *"))) < world_size and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        probe.close()


if __name__ == "__main__":
    _main()
