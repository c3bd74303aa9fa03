"""What the benchmark does with the objects that have come, while the clock runs."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gather_bench.looking import looked_at

NBYTES = 2 << 20


def resident_nbytes(address: int) -> int:
    """Of the mapping that begins at that address."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("Rss:"))
    raise AssertionError("no such mapping")


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_every_page_of_a_large_array_is_looked_at(make: Any) -> None:
    memory = mmap.mmap(-1, NBYTES)
    array = np.frombuffer(memory, np.int64).reshape(2, -1)
    before = resident_nbytes(array.ctypes.data)
    (back,) = looked_at([make(array)])
    assert back.nbytes == NBYTES
    assert before < NBYTES == resident_nbytes(array.ctypes.data)


def test_whatever_comes_may_be_looked_at() -> None:
    objects = [
        {"loss": 1.0},
        [np.zeros(3)],
        bytes(NBYTES),
        memoryview(bytes(NBYTES)),
        np.full(NBYTES, None),
        np.zeros((NBYTES // 8, 2), "M8[ns]")[:, 0],
        torch.zeros(NBYTES, dtype=torch.bfloat16),
        torch.zeros(NBYTES, requires_grad=True),
        torch.zeros(1000, NBYTES // 1000).t(),
        None,
    ]
    assert looked_at(objects) is objects
