"""A store for local ranks that nobody outside this host can reach."""

import socket
import sys

from torch._C._distributed_c10d import TCPStore

ADDRESS = "127.0.0.1"
LOOPBACK_INTERFACE = "lo" if sys.platform == "linux" else "lo0"
"""For GLOO_SOCKET_IFNAME."""


def loopback_store() -> TCPStore:
    """Serves a store on loopback, on a port that the system picks.

    A TCPStore that makes its own socket listens on all interfaces, whatever address it is given.
    """
    listener = socket.create_server((ADDRESS, 0))
    port = listener.getsockname()[1]
    return TCPStore(ADDRESS, port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())


def join_loopback_store(port: int) -> TCPStore:
    """Connects to what `loopback_store` serves."""
    return TCPStore(ADDRESS, port, None, False, wait_for_workers=False)
