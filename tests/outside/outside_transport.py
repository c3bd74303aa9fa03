"""A transport of the distribution `gather-outside`, which knows gather-core by its public names only."""

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from gather_core import (
    Capabilities,
    Deadline,
    GroupContext,
    PeerLostError,
    Transport,
    TransportError,
    TransportTimeoutError,
    aligned_buffer,
)

T = TypeVar("T")

_HOST = "127.0.0.1"
_RANK = struct.Struct("<I")
_NBYTES = struct.Struct("<Q")
_POLL_S = 0.1


class StarTransport(Transport):
    """Sockets of one host: rank 0 collects the slots and sends all of them to everyone.

    Args:
        backlog: Connections that may wait for rank 0 to take them.
    """

    name = "star"
    capabilities = Capabilities(locality="host", death_detection="fast")

    def __init__(self, *, backlog: int = 128) -> None:
        self._backlog = backlog
        self._links: dict[int, socket.socket] = {}
        self._rank = 0
        self._world_size = 0
        self._slot_nbytes = 0
        self._ended = "it is not open"

    @property
    def spec(self) -> str:
        return self.name if self._backlog == 128 else f"{self.name}:backlog={self._backlog}"

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        self._rank, self._world_size, self._slot_nbytes = context.rank, context.world_size, slot_nbytes
        self._slot = aligned_buffer(slot_nbytes)
        self._received = aligned_buffer(slot_nbytes * context.world_size)
        try:
            if context.rank == 0:
                self._welcome(context, Deadline(timeout_s))
            else:
                self._connect(context, Deadline(timeout_s))
        except BaseException:
            self.close()
            raise
        for link in self._links.values():
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else small slots wait for acknowledgements
        self._ended = ""

    def _welcome(self, context: GroupContext, deadline: Deadline) -> None:
        with socket.create_server((_HOST, 0), backlog=self._backlog) as listener:
            listener.settimeout(_POLL_S)
            context.store.set("port", str(listener.getsockname()[1]))
            while missing := sorted(set(range(1, context.world_size)) - set(self._links)):
                link, _ = self._patiently(listener.accept, missing, deadline)
                link.settimeout(_POLL_S)
                self._links[-1] = link
                rank = _RANK.unpack(self._receive(-1, memoryview(bytearray(_RANK.size)), deadline))[0]
                self._links[rank] = self._links.pop(-1)

    def _connect(self, context: GroupContext, deadline: Deadline) -> None:
        def find_port() -> int:
            if not context.store.check(["port"]):
                raise TimeoutError
            return int(context.store.get("port"))

        port = self._patiently(find_port, [0], deadline)
        self._links[0] = socket.create_connection((_HOST, port), timeout=deadline.remaining_s())
        self._links[0].settimeout(_POLL_S)
        self._send(0, _RANK.pack(context.rank), deadline)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def slot_nbytes(self) -> int:
        return self._slot_nbytes

    def slot(self, nbytes: int) -> memoryview:
        return self._slot[:nbytes]

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        if self._ended:
            raise TransportError(f"the transport cannot be used: {self._ended}")
        try:
            return self._exchange(nbytes, Deadline(timeout_s))
        except BaseException:
            self._ended = "an earlier call failed"
            raise

    def _exchange(self, nbytes: int, deadline: Deadline) -> Sequence[memoryview]:
        if self._rank != 0:
            self._send_slot(0, self._slot[:nbytes], deadline)
            return [self._receive_slot(0, rank, deadline) for rank in range(self._world_size)]
        self._received[:nbytes] = self._slot[:nbytes]
        slots = [self._received[:nbytes].toreadonly()]
        slots += [self._receive_slot(rank, rank, deadline) for rank in range(1, self._world_size)]
        for peer in range(1, self._world_size):
            for slot in slots:
                self._send_slot(peer, slot, deadline)
        return slots

    def _send_slot(self, peer: int, slot: memoryview, deadline: Deadline) -> None:
        self._send(peer, _NBYTES.pack(len(slot)), deadline)
        self._send(peer, slot, deadline)

    def _receive_slot(self, peer: int, rank: int, deadline: Deadline) -> memoryview:
        """Receives the slot of `rank` from `peer`."""
        nbytes = _NBYTES.unpack(self._receive(peer, memoryview(bytearray(_NBYTES.size)), deadline))[0]
        if nbytes > self._slot_nbytes:
            raise TransportError(f"rank {rank} announces {nbytes} bytes for a slot of {self._slot_nbytes}")
        start = rank * self._slot_nbytes
        return self._receive(peer, self._received[start : start + nbytes], deadline).toreadonly()

    def _send(self, peer: int, content: bytes | memoryview, deadline: Deadline) -> None:
        rest = memoryview(content)
        while rest:
            rest = rest[self._patiently(partial(self._links[peer].send, rest), [peer], deadline) :]

    def _receive(self, peer: int, into: memoryview, deadline: Deadline) -> memoryview:
        rest = into
        while rest:
            count = self._patiently(partial(self._links[peer].recv_into, rest), [peer], deadline)
            if count == 0:
                raise PeerLostError(f"the connection to rank {peer} has ended", [peer])
            rest = rest[count:]
        return into

    def _patiently(self, step: Callable[[], T], ranks: Sequence[int], deadline: Deadline) -> T:
        """Repeats a step until it no longer times out, which it does within 0.1 s."""
        while True:
            self.check_interrupt()
            try:
                return step()
            except TimeoutError:
                if deadline.passed():
                    raise TransportTimeoutError(
                        f"no sign of ranks {ranks} in {deadline.timeout_s:g} s", ranks
                    ) from None
            except OSError as exc:
                raise PeerLostError(f"the connection to ranks {ranks} broke: {exc}", ranks) from exc

    def abort(self, reason: str) -> None:
        self._ended = f"it was aborted: {reason}"
        for link in list(self._links.values()):
            with contextlib.suppress(OSError):  # it has ended already
                link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._ended = "it is closed"
        for link in list(self._links.values()):
            link.close()
        self._links.clear()
