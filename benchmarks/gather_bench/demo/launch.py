"""Starting the workers through torch's elastic launcher, over loopback, and telling how they ended."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from gather_bench.demo.job import JobFolder

_HANDLED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""The signals for which the launcher installs handlers of its own."""


class WorkerFailedError(Exception):
    """A worker failed and all have ended; the message names it and has what it wrote to its standard error."""


class InterruptedBySignalError(Exception):
    """A signal came and all workers have ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def run_workers(workers: int, folder: JobFolder) -> None:
    """Starts the workers on the folder's job and returns when all have ended well.

    Raises:
        WorkerFailedError: One of them failed.
        InterruptedBySignalError: This process got one of the signals that ask it to end.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from gather_bench.demo import rendezvous
    from gather_bench.loopback import ADDRESS, LOOPBACK_INTERFACE

    rendezvous.register()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend=rendezvous.BACKEND,
        local_addr=ADDRESS,
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(str(folder.logs), redirects=Std.ERR),
    )
    arguments = ("-m", "gather_bench.demo.worker", str(folder.path), str(os.getpid()))
    _set_up_environment(LOOPBACK_INTERFACE)
    _silence_launcher()
    with _signal_handlers_restored():
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except SignalException as exc:
            raise InterruptedBySignalError(exc.sigval) from None
        except ChildFailedError as exc:
            rank, failure = exc.get_first_failure()
            text = f"worker {rank} of {workers}: {_how_it_ended(failure.exitcode)}\n{folder.read_stderr(rank)}"
            raise WorkerFailedError(text.strip()) from None


def _how_it_ended(exitcode: int) -> str:
    if exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit status {exitcode}"


def _set_up_environment(interface: str) -> None:
    """One thread per worker, and loopback."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _silence_launcher() -> None:
    """The launcher's own messages are for operators of a cluster; how workers ended is told here."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _signal_handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
