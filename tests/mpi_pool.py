"""Ranks for tests that are processes of one MPI job: as a RankPool, of one size, without a torch process group.

Every job is one mpiexec, which runs many bodies; it is started anew where a body has killed, hung or broken a rank.
"""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mpi_worker
from rank_pool import RankPool, Running
from rank_worker import stacks_file
from worker_process import WorkerProcess, environment

MPIEXEC = Path(sys.executable).parent / "mpiexec"
"""Of the MPI that mpi4py finds first: a wheel's, installed beside it."""
_START_WITHIN_S = 60.0
_END_WITHIN_S = 20.0
_OF_MPICH = re.compile(r"/dev/shm/mpich_shm_\S+")


def missing() -> str:
    """Says what there is not that these tests need; empty where all is there."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    return "" if MPIEXEC.exists() else f"there is no mpiexec beside {sys.executable}"


class MpiRank(WorkerProcess):
    """One rank of a job. Whatever ends it ends the job."""

    def __init__(self, job: "MpiJob", scratch: Path, link: socket.socket) -> None:
        rank, self._pid = mpi_worker.HELLO.unpack(link.recv(mpi_worker.HELLO.size, socket.MSG_WAITALL))
        self.rank: int = rank
        self.process = job.process
        self.connection = Connection(link.detach())
        self._job = job
        self._stacks = stacks_file(scratch, self._pid)
        self._is_ready = False

    def stop(self) -> None:
        try:
            self.process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._job.end()
        self.connection.close()

    def interrupt(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)

    def pids(self) -> set[int]:
        """Its process, and the one that has started it."""
        with contextlib.suppress(OSError):  # it has ended
            parent = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[1]
            return {self._pid, int(parent)}
        return {self._pid}


class MpiJob:
    """An mpiexec and its ranks."""

    def __init__(self, world_size: int, scratch: Path) -> None:
        path = scratch / "mpi.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(world_size)
            listener.settimeout(_START_WITHIN_S)
            worker = [sys.executable, mpi_worker.__file__, str(path), str(scratch)]
            self.process = subprocess.Popen([MPIEXEC, "-n", str(world_size), *worker], env=environment(scratch))
            ranks = [MpiRank(self, scratch, listener.accept()[0]) for _ in range(world_size)]
        path.unlink()
        self.ranks = sorted(ranks, key=lambda rank: rank.rank)
        self._shared_memory = {name for rank in ranks for name in _shared_memory_of(rank)}

    def end(self) -> None:
        """Ends all processes, and deletes what MPICH leaves in /dev/shm when its ranks are killed."""
        self.process.terminate()  # mpiexec ends its ranks then
        try:
            self.process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            for rank in self.ranks:
                with contextlib.suppress(ProcessLookupError):
                    rank.interrupt(signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        for name in self._shared_memory:
            Path(name).unlink(missing_ok=True)


def _shared_memory_of(rank: MpiRank) -> list[str]:
    return _OF_MPICH.findall(Path(f"/proc/{rank._pid}/maps").read_text())


def unused_memory_of_mpich() -> set[Path]:
    """What MPICH has left in /dev/shm: nobody has it mapped."""
    there = set(Path("/dev/shm").glob("mpich_shm_*"))
    mapped: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            mapped.update(_OF_MPICH.findall(maps.read_text(errors="replace")))
    return {path for path in there if str(path) not in mapped}


class MpiPool(RankPool):
    """Runs bodies on all ranks of a job of `world_size` ranks."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self._world_size = world_size

    def start(self, world_size: int, body: Callable[..., Any], *args: Any, init: bool = False) -> Running:
        """As `RankPool.start`; never with a torch process group."""
        if world_size != self._world_size:
            raise ValueError(f"this job has {self._world_size} ranks, not {world_size}")
        return super().start(world_size, body, *args, init=False)

    def pids(self) -> set[int]:
        """Also of the processes between mpiexec and its ranks, of which it has one per host."""
        return super().pids() | {pid for rank in self._workers if isinstance(rank, MpiRank) for pid in rank.pids()}

    def _take(self, world_size: int) -> Sequence[WorkerProcess]:
        if any(worker.process.poll() is not None for worker in self._workers) or len(self._workers) < world_size:
            for worker in list(self._workers):
                self._discard(worker)
            self._workers = [*MpiJob(world_size, self.scratch).ranks]
        return self._workers


MpiPools = Callable[[int], MpiPool]
"""The pool of that many ranks: the fixture `mpi_pools`."""
