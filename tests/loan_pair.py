"""A rank that lends and one that borrows, in one process."""

from gather_transports.allocation import Allocator
from gather_transports.owned_descriptor import Descriptor
from gather_transports.semaphores import post
from gather_transports.shm_control import NUM_AREAS, ControlBlock, Extent, create_control
from gather_transports.shm_loans import Lender
from gather_transports.shm_region import OwnRegion, PeerRegion

MIB = 1 << 20
SLOT = 1024


class Pair:
    """Both, over one file."""

    def __init__(self, file: Descriptor, control_fd: int, *, lends: bool = True, keep_nbytes: int = MIB) -> None:
        create_control(control_fd, 2)
        self.control = ControlBlock(control_fd, 0, 2)
        self.own = OwnRegion(file, SLOT, keep_nbytes, Allocator(file, 1, lambda: None))
        self.peer = PeerRegion(file, SLOT)
        self.lender = Lender([self.control.loan_token(0, area) for area in range(NUM_AREAS)], 1)
        if lends:
            self.own.lender = self.lender

    def hand_over(self, number: int, nbytes: int = 2 * MIB) -> Extent:
        self.own.large_slot(nbytes, may_lend=True)[:nbytes] = bytes([number]) * nbytes
        return self.own.hand_over(nbytes, may_lend=True)

    def give_token(self, extent: Extent) -> None:
        post(self.control.loan_token(0, extent.area))

    def borrow(self, extent: Extent) -> memoryview:
        assert extent.lent
        return self.peer.borrow(extent, self.control.loan_token(0, extent.area), self.control.memory)
