"""Fresh memory for payloads: 64-byte aligned, writable, not zeroed first."""

ALIGNMENT = 64
"""Every slot, payload and frame starts at a multiple of this many bytes: a cache line, and any dtype's alignment."""

UNBOUNDED = 1 << 63
"""More bytes than anything has."""


def align(nbytes: int) -> int:
    """Rounds up to the next multiple of `ALIGNMENT`."""
    return (nbytes + ALIGNMENT - 1) & -ALIGNMENT


def aligned_buffer(nbytes: int) -> memoryview:
    """Allocates `nbytes` of uninitialised memory, owned by the view that is returned.

    Raises:
        MemoryError: There is not that much.
    """
    import ctypes

    import numpy as np

    block = np.empty(nbytes + ALIGNMENT, np.uint8).data
    # A third of the time that numpy takes to tell its address.
    start = -ctypes.addressof(ctypes.c_char.from_buffer(block)) % ALIGNMENT
    return block[start : start + nbytes]
