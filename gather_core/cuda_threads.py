"""What a thread that works for another one has to know of CUDA: the device, and the work that is still under way.

Nothing here imports torch or starts CUDA: where nobody has, there is nothing to know.
"""

import sys
from collections.abc import Callable
from typing import Any


def current_device() -> int | None:
    """The device of this thread; None where CUDA is not in use."""
    torch: Any = _torch_with_cuda()
    return None if torch is None else int(torch.cuda.current_device())


def use_device(device: int | None) -> None:
    """Makes a device that of this thread; None: leaves it as it is."""
    if device is not None:
        _torch_with_cuda().cuda.set_device(device)


def work_under_way() -> Callable[[], None]:
    """Returns what waits, in whichever thread, for what this thread's current stream has been given so far."""
    torch: Any = _torch_with_cuda()
    if torch is None:
        return _nothing
    event = torch.cuda.Event(blocking=True)
    event.record()
    wait: Callable[[], None] = event.synchronize
    return wait


def _torch_with_cuda() -> Any:
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized() else None


def _nothing() -> None:
    pass
