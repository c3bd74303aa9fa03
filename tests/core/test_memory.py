"""aligned_buffer: aligned, writable, the view's own, and not touched before it is handed out."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gather_core.memory import ALIGNMENT, align, aligned_buffer

_MIB = 1 << 20
_STATM = Path("/proc/self/statm")


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def resident_nbytes() -> int:
    return int(_STATM.read_text().split()[1]) * 4096


@given(st.integers(1, 300_000))
def test_memory_is_aligned_writable_and_of_the_size_asked_for(nbytes: int) -> None:
    view = aligned_buffer(nbytes)
    assert address(view) % ALIGNMENT == 0
    assert (view.nbytes, view.format, view.ndim, view.readonly) == (nbytes, "B", 1, False)
    view[0] = view[-1] = 7


def test_no_bytes_are_a_buffer_too() -> None:
    assert len(aligned_buffer(0)) == 0


@pytest.mark.skipif(not _STATM.exists(), reason="resident memory is read from /proc")
def test_memory_is_not_touched_before_it_is_handed_out() -> None:
    before = resident_nbytes()
    view = aligned_buffer(256 * _MIB)
    assert resident_nbytes() - before < 64 * _MIB
    view[: 128 * _MIB : 4096] = bytes(128 * _MIB // 4096)  # what would have been seen, had it been zeroed
    assert resident_nbytes() - before > 96 * _MIB


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    tracemalloc.start()
    try:
        view = aligned_buffer(4 * _MIB)[_MIB:]
        assert tracemalloc.get_traced_memory()[0] > 4 * _MIB
        del view
        assert tracemalloc.get_traced_memory()[0] < _MIB
    finally:
        tracemalloc.stop()


@given(st.integers(0, 1 << 60))
def test_sizes_are_rounded_up_to_the_alignment(nbytes: int) -> None:
    assert align(nbytes) % ALIGNMENT == 0
    assert 0 <= align(nbytes) - nbytes < ALIGNMENT
