"""The process at the other end of a `Confined`: runs one call after another, each with little more memory than it has.

A call is a function, pickled by reference, and its arguments; what became of it goes back as a `Report`.
"""

import contextlib
import importlib
import os
import pickle
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rank_worker import PickledError


@dataclass(frozen=True)
class Task:
    """What the process is sent."""

    call: bytes
    """Function and arguments, pickled."""
    more_nbytes: int
    """Address space that the call may take beyond what the process has by then."""


@dataclass(frozen=True)
class Report:
    """What the process sends back."""

    value: object = None
    error: PickledError | None = None


def serve(fileno: int, modules: Sequence[str]) -> None:
    """The main function of the process: imports what calls need, then runs them until the other end is closed."""
    os.set_inheritable(fileno, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in modules:
        importlib.import_module(name)
    connection = Connection(fileno)
    with contextlib.suppress(EOFError, OSError):
        connection.send_bytes(b"ready")
        while True:  # pickled here, as the connection's own pickler would have tensors shared
            connection.send_bytes(_run(pickle.loads(connection.recv_bytes())))


def _run(task: Task) -> bytes:
    """Runs a call and returns its pickled report."""
    try:
        function, args = pickle.loads(task.call)  # before the limit, as it may import modules
        with _at_most(_address_space_nbytes() + task.more_nbytes):
            value = function(*args)
        return pickle.dumps(Report(value))
    except BaseException as exc:
        return pickle.dumps(Report(error=PickledError.dump(exc)))


@contextlib.contextmanager
def _at_most(nbytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _address_space_nbytes() -> int:
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    return num_pages * resource.getpagesize()
