"""One rank's place in a shared-memory group: its own memory, that of its peers, and how it waits for them."""

from collections.abc import Callable, Sequence

from gather_core.errors import TransportError
from gather_core.transport import GroupContext
from gather_transports.allocation import Allocator
from gather_transports.owned_descriptor import Descriptor
from gather_transports.process_life import ProcessLife
from gather_transports.semaphores import Semaphore, post
from gather_transports.shared_file import FileAddress, address_of, attach_file, create_file
from gather_transports.shm_control import LEFT, NUM_AREAS, ControlBlock, Extent, Leave, create_control
from gather_transports.shm_loans import Lender
from gather_transports.shm_region import OwnRegion, PeerRegion
from gather_transports.shm_rendezvous import Note, exchange_notes, own_note
from gather_transports.shm_wait import PeerWait


class ShmGroup:
    """What is there once the group is connected; nothing of it outlives `close`, but for views still in use."""

    def __init__(
        self,
        context: GroupContext,
        slot_nbytes: int,
        folder: str,
        keep_nbytes: int,
        lends: bool,
        timeout_s: float,
        check_interrupt: Callable[[], None],
    ) -> None:
        """(all ranks) Connects; with `lends`, ranks may keep the large payloads of others.

        Raises:
            TransportError: Some rank did not come, or its memory cannot be had; nothing is left behind.
            OSError: No memory or descriptors; nothing is left behind.
            BaseException: What `check_interrupt` raises, or a signal's handler.
        """
        self.rank = context.rank
        self.world_size = context.world_size
        self._files: list[Descriptor] = []
        self._lives: dict[int, ProcessLife] = {}
        self.owed: list[Semaphore] = []
        """Tokens of loans that end with the exchange, as they could not be taken over."""
        try:
            file = self._own(create_file(folder))
            self.own = OwnRegion(file, slot_nbytes, keep_nbytes, Allocator(file, context.world_size, check_interrupt))
            with file as fd:
                region = address_of(fd)
            control = self._create_control(folder) if self.rank == 0 else None
            notes = exchange_notes(context, own_note(region, control), timeout_s, check_interrupt)
            self._attach(notes, slot_nbytes)
            if lends:
                tokens = [self.control.loan_token(self.rank, area) for area in range(NUM_AREAS)]
                self.own.lender = Lender(tokens, self.world_size)
        except BaseException:
            self.close()
            vars(self).clear()  # as the traceback holds this object, which would hold the mappings
            raise

    def _own(self, fd: int) -> Descriptor:
        self._files.append(Descriptor(fd))
        return self._files[-1]

    def _create_control(self, folder: str) -> FileAddress:
        with self._own(create_file(folder)) as fd:
            create_control(fd, self.world_size)
            return address_of(fd)

    def _attach(self, notes: Sequence[Note], slot_nbytes: int) -> None:
        control = notes[0].control
        if control is None:
            raise TransportError("rank 0 has published no control block")
        file = self._open(0, control, writable=True)
        with file as fd:
            self.control = ControlBlock(fd, self.rank, self.world_size)
        file.close()
        self.peers: dict[int, PeerRegion] = {}
        for rank, note in enumerate(notes):
            if rank != self.rank:
                self._lives[rank] = ProcessLife(note.birth)  # before the memory is opened that only this process has
                self.peers[rank] = PeerRegion(self._open(rank, note.region, writable=False), slot_nbytes)
        self.wait = PeerWait(self.control, self.rank, self._lives)
        self.given = [self.control.token(self.rank, peer) for peer in self.peers]
        """The tokens that this rank gives, one to each peer."""
        self.extents = self.control.extents
        self.no_extents = memoryview(bytes(8 * self.world_size)).cast("Q")
        self.views = (self._slots_of(0), self._slots_of(1))
        """The slots of all ranks in even and odd exchanges, read-only."""

    def _open(self, rank: int, address: FileAddress, *, writable: bool) -> Descriptor:
        try:
            return self._own(attach_file(address, writable=writable))
        except TransportError as exc:
            raise TransportError(f"rank {rank}: {exc}") from exc

    def _slots_of(self, turn: int) -> tuple[memoryview, ...]:
        peers, own = self.peers, self.own.slots[turn].toreadonly()
        return tuple(own if rank == self.rank else peers[rank].slots[turn] for rank in range(self.world_size))

    def large_views(self, turn: int) -> tuple[memoryview, ...]:
        """As `views`, where some ranks have used an area; what they have lent is writable, and the caller's to keep.

        Raises:
            AbortedError: A rank has given up in this exchange, though its tokens had come.
            TransportError: What a peer has put there cannot be mapped.
        """
        views = list(self.views[turn])
        for rank, number in enumerate(self.extents[turn]):
            if number == LEFT:
                raise self.wait.aborted(rank)
            if number:
                views[rank] = self._large_view(rank, Extent.unpack(number))
        return tuple(views)

    def _large_view(self, rank: int, extent: Extent) -> memoryview:
        region = self.own if rank == self.rank else self.peers[rank]
        if extent.lent:
            token = self.control.loan_token(rank, extent.area)
            try:
                return region.borrow(extent, token, self.control.memory)
            except OSError:  # no address space for a mapping of its own, or another thread forks
                self.owed.append(token)
        try:
            return region.written(extent)
        except OSError as exc:
            raise TransportError(f"the {extent.nbytes} bytes of rank {rank} cannot be mapped here: {exc}") from exc

    def end_loans(self) -> None:
        """Gives back what was lent for this exchange but could not be taken over: nobody reads it any more."""
        while self.owed:
            post(self.owed.pop())

    def leave(self, kind: Leave, text: str, *, within: int | None) -> None:
        """Tells the peers; from any thread. `within`: the turn whose exchange is not at its end, if any."""
        self.wait.given_up = text
        self.control.say_farewell(kind, text, within=within)

    def are_dead(self) -> dict[int, bool]:
        """For each peer, whether its process has ended."""
        return {rank: life.is_dead() for rank, life in self._lives.items()}

    def close(self) -> None:
        """Gives descriptors up; mappings end with the last view, and with this object.

        From any thread, also while another waits or grows. Idempotent, never raises.
        """
        for file in self._files:
            file.close()
        for life in self._lives.values():
            life.close()
