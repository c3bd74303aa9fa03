"""What a case has on each rank: Gatherers, the clock, and ways to die, stop, wait and damage."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gather_core import Gatherer

VICTIM = 1
"""The rank that something happens to, of `WORLD_SIZE`."""
WORLD_SIZE = 3
SHORT_S, LONG_S = 2.0, 30.0
"""Timeouts of Gatherers: where ranks wait for the deadline, and where they must hear of it long before."""
_POLL_S = 0.005
_FAULT = "fault"


class Scene:
    """One rank's part in one case.

    Args:
        rank: This rank.
        world_size: Of how many.
        transport: Spec of the transport.
        folder: Seen by all ranks of this run, and by no other run.
        group: What a Gatherer takes for the group.
        other_group: (all ranks) Makes another group of the same ranks; None: torch.distributed does.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        transport: str,
        folder: Path,
        group: object,
        other_group: Callable[[], object] | None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.transport = transport
        self.group = group
        self.other: object = None
        """Another group, for cases that need one."""
        self._make_other_group = other_group
        self.gatherers: list[Gatherer] = []
        self.to_close: list[Callable[[], object]] = []
        """What else is to be called after the case."""
        self._folder = folder

    @property
    def is_victim(self) -> bool:
        """Whether something happens to this rank."""
        return self.rank == VICTIM

    @property
    def folder(self) -> Path:
        """Seen by all ranks of this run, and by no other run."""
        return self._folder

    def make_other_group(self) -> object:
        """(all ranks) Another group of the same ranks."""
        return self.sub_group(range(self.world_size)) if self._make_other_group is None else self._make_other_group()

    def gatherer(self, timeout_s: float = LONG_S, **settings: Any) -> Gatherer:
        """(all ranks) A Gatherer, which is closed after the case."""
        settings = {"transport": self.transport, "group": self.group, "timeout_s": timeout_s, **settings}
        self.gatherers.append(Gatherer(**settings))
        return self.gatherers[-1]

    def ready(self, timeout_s: float = LONG_S, **settings: Any) -> Gatherer:
        """(all ranks) A Gatherer that has exchanged something, and all ranks have seen it."""
        gatherer = self.gatherer(timeout_s, **settings)
        gatherer.all_gather(b"first" if "raw" in str(settings.get("codec")) else "first", timeout_s=LONG_S)
        self.meet("ready")
        return gatherer

    def fault(self) -> None:
        """It happens now: from here the seconds are counted. The victim's call counts, or else the first."""
        path = self._folder / _FAULT
        if self.is_victim or not path.exists():
            _write(path, repr(time.monotonic()))

    def say(self, point: str) -> None:
        """Tells the other ranks that this one is here."""
        (self._folder / f"{point} {self.rank}").touch()

    def await_rank(self, rank: int, point: str, within_s: float = LONG_S) -> None:
        """Waits until that rank has said so."""
        deadline = time.monotonic() + within_s
        while not (self._folder / f"{point} {rank}").exists():
            if time.monotonic() > deadline:
                raise AssertionError(f"rank {rank} never was at {point!r}")
            time.sleep(_POLL_S)

    def meet(self, point: str, ranks: Sequence[int] | None = None) -> None:
        """(those ranks) Waits for each other, without any transport."""
        self.say(point)
        for rank in range(self.world_size) if ranks is None else ranks:
            self.await_rank(rank, point)

    def die(self) -> None:
        """Kills this process."""
        self.fault()
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, seconds: float) -> None:
        """Stops this process, all threads of it, for so long."""
        wake = subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
        self.fault()
        os.kill(os.getpid(), signal.SIGSTOP)
        wake.wait()

    def close(self) -> None:
        """Closes all Gatherers, and whatever else there is to close."""
        while self.gatherers:
            self.gatherers.pop().close()
        while self.to_close:
            self.to_close.pop()()

    def sub_group(self, ranks: Sequence[int], **options: Any) -> Any:
        """(all ranks, or those alone with `use_local_synchronization`) A group of torch.distributed, for this case."""
        import torch.distributed as dist

        group = dist.new_group([*ranks], **options)
        if self.rank in ranks:
            self.to_close.append(lambda: dist.destroy_process_group(group))
        return group


def fault_time(folder: Path) -> float | None:
    """When it happened, by the clock that all processes of a machine share; None if it never did."""
    path = folder / _FAULT
    return float(path.read_text()) if path.exists() else None


def until_it_fails(gatherer: Gatherer, obj: object = "more", times: int = 4) -> None:
    """Gathers again and again: what was under way may still succeed on some ranks. Results must be right."""
    for number in range(times):
        gathered = gatherer.all_gather((number, gatherer.rank, obj))
        assert gathered == [(number, rank, obj) for rank in range(gatherer.world_size)], "a wrong result"


def wrap(thing: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Puts `wrapper(original, *args, **options)` in the place of a method of this one object."""
    original = getattr(thing, name)
    setattr(thing, name, lambda *args, **options: wrapper(original, *args, **options))


def before_sending(gatherer: Gatherer, change: Callable[[memoryview], object]) -> None:
    """Changes this rank's filled slot before it is sent."""

    def changed(call: Callable[..., Any], nbytes: int, **options: Any) -> Any:
        change(gatherer.transport.slot(nbytes))
        return call(nbytes, **options)

    wrap(gatherer.transport, "all_gather_slots", changed)


def on_receipt(gatherer: Gatherer, change: Callable[[list[memoryview]], Sequence[memoryview]]) -> None:
    """Changes the slots that this rank has received."""
    wrap(gatherer.transport, "all_gather_slots", lambda call, *args, **options: change(list(call(*args, **options))))


def _write(path: Path, text: str) -> None:
    """At once, for readers."""
    written = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}")
    written.write_text(text)
    written.rename(path)
