"""Which ranks are on one host: those that run on one kernel and can reach each other's memory and process ids.

A name proves nothing, nor does anything else that can be read: clones of a machine have one machine-id, and when they
are resumed from one snapshot also one boot id, one set of namespaces and one state of the random numbers. So what can
be read only tells who cannot be together; those who might be prove it, by reaching a socket whose name exists in one
kernel and network namespace only.
"""

import errno
import logging
import os
import platform
import socket
import uuid
from functools import lru_cache
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from gather_core.background import run_bounded
from gather_core.errors import shorten, summarize
from gather_core.transport import GroupContext, Store

HOST_ID = "GATHER_HOST_ID"
"""The variable that overrides everything: ranks are on one host where it is set to the same text."""

_log = logging.getLogger("gather_core")
_PROC = Path("/proc")
_SHARED_MEMORY = Path("/dev/shm")
_NAMESPACES = ("net", "pid", "user")
"""Process ids and owners of memory mean the same within one; the proof reaches no farther than the first. The one of
mounts is not asked, as only the mount of shared memory counts."""
_LONGEST_ID_NBYTES = 256
_TIDY_WITHIN_S = 1.0
_RANDOM_MAC = 1 << 40
"""The bit that tells a made-up hardware address, other in each process, from a real one."""


class HostProbe:
    """One rank's look around while its Gatherer is constructed.

    The first rank to come with some kernel says so in the store, and the name of its socket. Each later one tries that
    socket: it is on the host of the first rank that it reaches, or begins a host of its own. `close` ends the proof.
    """

    def __init__(self) -> None:
        """Looks at nothing yet."""
        self._socket: socket.socket | None = None
        self._store: Store | None = None
        self._key = ""
        self._is_over = False

    def look(self, context: GroupContext) -> str:
        """Returns a text that is the same on the ranks of one host; may block for as long as the store does.

        Where a proof is needed and this rank cannot take part in it, for want of descriptors or because that is not
        allowed, it is on a host of its own. Systems that tell nothing of their kernel go by node name and MAC address.

        Args:
            context: This rank's place; its store is private to the Gatherer that is constructed.

        Raises:
            RuntimeError: The store failed.
        """
        if context.hosts:
            return f"known {context.hosts[context.rank]}"
        if named := os.environ.get(HOST_ID):
            return f"named {shorten(named, _LONGEST_ID_NBYTES)}"
        kernel = _kernel_of(os.getpid())
        return f"node {_node_identity()}" if kernel is None else f"kernel {self._prove(context, kernel)}"

    def close(self) -> None:
        """Takes back what this rank has shown, within a second; idempotent, never raises."""
        self._is_over = True
        listening, self._socket = self._socket, None
        if listening is not None:
            listening.close()
        store, self._store = self._store, None
        if store is None:
            return
        try:
            run_bounded(lambda: store.delete_key(self._key), _TIDY_WITHIN_S)
        except (TimeoutError, RuntimeError) as exc:
            _log.debug("a key is left in the job's store: %s", exc)

    def _prove(self, context: GroupContext, kernel: str) -> str:
        rank, store = context.rank, context.store
        try:
            name = self._listen(f"{os.urandom(16).hex()}/{rank}")  # the rank, as clones can draw the same numbers
        except OSError as exc:
            _log.warning("rank %d takes itself to be alone on its host: %s", rank, summarize(exc))
            return f"{kernel} alone {rank}"
        for number in range(context.world_size):
            key = f"host/{kernel}/{number}"
            first = store.compare_set(key, "", name).decode()
            if first == name:
                self._store, self._key = store, key
                break
            if _reaches(first):
                self._stop_listening()
                break
        return f"{kernel} {first.rpartition('/')[2]}"

    def _listen(self, name: str) -> str:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(_address(name))
        if self._is_over:
            self._stop_listening()
        return name

    def _stop_listening(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _reaches(name: str) -> bool:
    """Whether a socket of that name is bound on this kernel and network namespace."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(_address(name))
    except OSError as exc:
        if exc.errno != errno.ECONNREFUSED:  # by which the kernel says that nobody has that name
            _log.warning("a rank that may be on this host cannot be reached: %s", summarize(exc))
        return False
    return True


def _address(name: str) -> str:
    return f"\0gather-core/{name}"


def _kernel_of(pid: int) -> str | None:
    """The identity as a short text; None where it cannot be read now, as without a free descriptor."""
    try:
        return _read_kernel(pid)
    except LookupError:
        return None


@lru_cache(maxsize=1)
def _read_kernel(pid: int) -> str:
    """Read once in each process: a forked child may be in other namespaces. What fails is tried again."""
    del pid
    identity = kernel_identity()
    if identity is None:
        raise LookupError("nothing can be read")
    return xxh3_64_hexdigest(identity.encode())


def kernel_identity() -> str | None:
    """Everything that differs between ranks that cannot share memory, as far as it can be read.

    None where the system does not tell: it is not a Linux, or hides it.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespaces = [str((_PROC / "self/ns" / name).stat().st_ino) for name in _NAMESPACES]
    except OSError:
        return None
    return " ".join([boot, *namespaces, _memory_identity(), str(os.geteuid())])


def _memory_identity() -> str:
    """Where memory is shared: the same mount on one kernel, whatever else is mounted."""
    try:
        memory = _SHARED_MEMORY.stat()
    except OSError:
        return "none"
    return f"{memory.st_dev}:{memory.st_ino}"


def _node_identity() -> str:
    mac = uuid.getnode()
    return platform.node() if mac & _RANDOM_MAC else f"{platform.node()} {mac:012x}"
