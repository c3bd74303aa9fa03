"""What a rank in a test of shared memory does: opens the transport, and exchanges; and the file that it does so in."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from gather_core.deadline import Deadline
from gather_core.errors import TransportError
from gather_core.local_store import ScopedStore
from gather_core.transport import GroupContext
from gather_transports import shared_file
from gather_transports.shm import ShmTransport

SLOT = 1024


def opened_in(context: GroupContext) -> ShmTransport:
    """(all ranks) Opens a transport, and waits for all to have done so."""
    transport = ShmTransport()
    hosts = (0,) * context.world_size
    transport.open(replace(context, store=ScopedStore("test", context.store), hosts=hosts), SLOT, timeout_s=30)
    context.store.add("opened", 1)
    deadline = Deadline(30)
    while context.store.add("opened", 0) < context.world_size:  # what round 0 guarantees
        assert not deadline.passed()
        time.sleep(0.002)
    return transport


def opened() -> ShmTransport:
    """(all ranks of the default group) As `opened_in`."""
    return opened_in(ShmTransport.join(None))


def exchange(transport: ShmTransport, content: bytes, timeout_s: float = 30) -> list[bytes]:
    """Returns what the slots of all ranks begin with."""
    transport.slot(len(content))[: len(content)] = content
    return [bytes(view[: len(content)]) for view in transport.all_gather_slots(len(content), timeout_s=timeout_s)]


def failed(transport: ShmTransport, timeout_s: float = 30) -> TransportError:
    """Returns how an exchange fails."""
    with pytest.raises(TransportError) as caught:
        exchange(transport, b"x", timeout_s)
    return caught.value


@contextmanager
def new_file() -> Iterator[int]:
    """A file as regions lie in, for the `with` block."""
    fd = shared_file.create_file("")
    try:
        yield fd
    finally:
        os.close(fd)
