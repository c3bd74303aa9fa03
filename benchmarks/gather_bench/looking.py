"""Looking at what has come, as whoever gathers it will: some memory is there only once it is looked at."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

_FROM_NBYTES = 1 << 20
_PAGE_NBYTES = 4096


def looked_at(objects: Sequence[Any]) -> Sequence[Any]:
    """Reads a byte in every page of large arrays and tensors among the objects, and returns them."""
    for each in objects:
        if isinstance(each, np.ndarray):
            if each.nbytes >= _FROM_NBYTES and not each.dtype.hasobject:
                each.ravel(order="K").view(np.uint8)[::_PAGE_NBYTES].max()
        elif isinstance(each, torch.Tensor) and each.nbytes >= _FROM_NBYTES:
            each.detach().reshape(-1).view(torch.uint8)[::_PAGE_NBYTES].max()
    return objects
