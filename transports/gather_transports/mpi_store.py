"""The store of an MPI job without torch: hosted by the first rank, on a port that the system picks."""

import json
import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from gather_core.host_identity import kernel_identity

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

_LOOPBACK = "127.0.0.1"
_DISCARD_PORT = 9


def host_identity() -> str:
    """What ranks of one host have in common."""
    return f"{socket.gethostname()}/{kernel_identity() or ''}"


def host_store(*, one_host: bool) -> "tuple[TCPStore, str]":
    """Serves a store; returns it with the address that `join_store` takes.

    It listens on one address only: a TCPStore that makes its own socket would listen on all.

    Raises:
        OSError: No address of this host can be listened on.
    """
    from torch._C._distributed_c10d import TCPStore

    address = _LOOPBACK if one_host else _outside_address()
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    store = TCPStore(address, port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, json.dumps([address, port])


def join_store(address: str, timeout_s: float) -> "TCPStore":
    """Connects to what `host_store` serves.

    Raises:
        RuntimeError: It cannot be reached.
    """
    from torch._C._distributed_c10d import TCPStore

    host, port = json.loads(address)
    return TCPStore(host, port, None, False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


def _outside_address() -> str:
    """An address of this host at which others reach it: `MASTER_ADDR` where that is this host, else the host name's,
    else the one of the default route.
    """
    for name in (os.environ.get("MASTER_ADDR", ""), socket.gethostname()):
        for address in _addresses(name):
            if _is_ours(address):
                return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", _DISCARD_PORT))  # TEST-NET-1 (RFC 5737): nothing is sent, a route is looked up
        return str(probe.getsockname()[0])


def _addresses(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name or None, 0, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:  # a name that nobody knows
        return []
    return [str(info[4][0]) for info in found if not str(info[4][0]).startswith("127.")]


def _is_ours(address: str) -> bool:
    try:
        socket.create_server((address, 0)).close()
    except OSError:
        return False
    return True
