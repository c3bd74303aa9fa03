"""One rank of a run of the transport contract: what a Gatherer does with a transport, and how ranks wait for another.

All that ranks tell each other goes through the group's store, so that they may be threads or processes.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

from gather_core.deadline import Deadline
from gather_core.gatherer import Gatherer
from gather_core.local_store import ScopedStore
from gather_core.scratch_store import ScratchStore
from gather_core.testing.thread_ranks import SecondaryFailureError
from gather_core.transport import GroupContext, Transport

__all__ = ["SLOT_NBYTES", "TIMEOUT_S", "GaveUpError", "KeyLedger", "Member", "caught", "give_up", "run_member"]

SLOT_NBYTES = 1024
TIMEOUT_S = 20.0
"""Of what should succeed, in seconds."""
_PAUSE_S = 0.001


class GaveUpError(BaseException):
    """Raised by `check_interrupt`: this run of the contract is over, or a wait has taken far too long.

    Not an Exception, as no transport may swallow it.
    """


class KeyLedger(ScratchStore):
    """A scratch store that knows which keys this rank has written and not deleted."""

    @property
    def num_keys(self) -> int:
        """How many these are."""
        return len(self._written)

    def delete_key(self, key: str, /) -> bool:  # noqa: D102
        self._written.discard(key)
        return super().delete_key(key)


class Member:
    """One rank while the body of a test runs on it.

    Args:
        context: Its place in the group, as `Transport.join` returns it.
        make_transport: Makes another transport.
        timeout_s: Seconds until waiting for other ranks of the test is a failure.
    """

    def __init__(self, context: GroupContext, make_transport: Callable[[], Transport], timeout_s: float) -> None:
        self.context = context
        self.rank = context.rank
        self.world_size = context.world_size
        self.is_last = context.rank == context.world_size - 1
        self.others = [rank for rank in range(context.world_size) if rank != context.rank]
        self.doing = "starting"
        self._make_transport = make_transport
        self._timeout_s = timeout_s
        self._run = context.store.add(f"contract/runs/{context.rank}", 1)
        self._store = ScopedStore(f"contract/{self._run}", context.store)
        self._patience: Deadline | None = None
        self._num_opened = self._num_barriers = self._num_failures = 0
        self._transports: list[Transport] = []

    def step(self, doing: str) -> None:
        """Says what this rank does next, for messages and in the name of its thread."""
        self.doing = doing
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            thread.name = f"rank {self.rank}, in {doing!r}"

    def prepare(self, *, may_give: bool = False) -> tuple[Transport, GroupContext, KeyLedger]:
        """Makes a transport, and returns it with the context that a Gatherer would open it with."""
        self._num_opened += 1
        transport = self._make_transport()
        transport.taken = True
        transport.check_interrupt = self.check
        transport.may_give = may_give
        self._transports.append(transport)
        scope = f"{self.context.name}/contract/{self._run}/{self._num_opened}"
        store = KeyLedger(f"opened/{self._num_opened}", self._store)
        hosts = self.context.hosts or (0,) * self.world_size
        return transport, replace(self.context, store=store, scope=scope, hosts=hosts), store

    def open(self, slot_nbytes: int = SLOT_NBYTES, *, may_give: bool = False) -> Transport:
        """(all ranks) Opens another transport."""
        return self.open_with_ledger(slot_nbytes, may_give=may_give)[0]

    def open_with_ledger(
        self, slot_nbytes: int = SLOT_NBYTES, *, may_give: bool = False
    ) -> tuple[Transport, KeyLedger]:
        """(all ranks) Opens another transport, and tidies up what opening has written, as a Gatherer does."""
        transport, context, store = self.prepare(may_give=may_give)
        self.step("open")
        transport.open(context, slot_nbytes, timeout_s=TIMEOUT_S)
        self.barrier()
        store.tidy_up()
        self.step("after open")
        return transport, store

    def gatherer(self) -> Gatherer:
        """(all ranks) Constructs a Gatherer, which will close it, over another transport and this run's group."""
        transport = self._make_transport()
        # its own cannot know of this run's group
        vars(transport)["join_within"] = lambda group, timeout_s: self.context
        self.step("construct a Gatherer")
        return Gatherer(transport=transport, slot_nbytes=SLOT_NBYTES, timeout_s=TIMEOUT_S)

    def check(self) -> None:
        """What the transports' `check_interrupt` is."""
        if self._store.check(["over"]):
            raise GaveUpError("another rank has failed")
        if self._patience is not None and self._patience.passed():
            raise GaveUpError(f"it still waited after {self._patience.timeout_s:g} s")

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Ends waits of the transport after that many seconds."""
        self._patience = Deadline(seconds)
        try:
            yield
        finally:
            self._patience = None

    def signal(self, point: str) -> None:
        """Tells the others that this rank has come to a point of the test."""
        self._store.set(f"point/{point}/{self.rank}", "")

    def wait_for(self, point: str, ranks: Iterable[int]) -> None:
        """Waits until other ranks have come to a point of the test."""
        keys = [f"point/{point}/{rank}" for rank in ranks]
        deadline = Deadline(self._timeout_s)
        while keys and not self._store.check(keys):
            self.check()
            assert not deadline.passed(), f"waited for other ranks to come to {point!r} for {self._timeout_s:g} s"
            sleep(_PAUSE_S)

    def barrier(self) -> None:
        """(all ranks) Waits for all ranks to come here."""
        self._num_barriers += 1
        point = f"barrier {self._num_barriers}"
        self.signal(point)
        self.wait_for(point, range(self.world_size))

    def forget(self, transport: Transport) -> None:
        """Says that the test itself has closed it."""
        self._transports.remove(transport)

    def close(self) -> None:
        """Closes all transports.

        Raises:
            AssertionError: One of them raised, and the test has not failed already.
        """
        for transport in self._transports:
            failure, _ = caught(transport.close)
            if failure is not None and self.end_run():
                raise AssertionError(f"close after {self.doing!r} raised {failure!r}") from failure

    def end_run(self) -> bool:
        """Ends the waits of all ranks, as this one has failed; returns whether this is the first failure of all."""
        self._num_failures += 1
        won = self._store.compare_set("over", "", str(self.rank)) == str(self.rank).encode()
        return won and self._num_failures == 1


def caught(call: Callable[..., Any], *args: Any) -> tuple[BaseException | None, float]:
    """Returns what a call raises, if anything, and how long it took in seconds."""
    started = monotonic()
    failure: BaseException | None = None
    try:
        call(*args)
    except BaseException as exc:
        failure = exc
    return failure, monotonic() - started


def run_member(
    context: GroupContext, make_transport: Callable[[], Transport], body: Callable[[Member], None], timeout_s: float
) -> None:
    """Runs the body of a test on one rank; a failure ends it on the others too.

    Raises:
        AssertionError: It failed, here; says in which step.
    """
    member = Member(context, make_transport, timeout_s)
    try:
        try:
            body(member)
            member.step("the end")
            member.barrier()  # nobody closes before all have seen what they were to see
        except BaseException as exc:
            raise _failure(member, exc) from exc
    finally:
        member.close()


def _failure(member: Member, exc: BaseException) -> AssertionError:
    """Ends the run for all ranks, and says what went wrong on this one."""
    was_first = member.end_run()
    text = str(exc) if isinstance(exc, AssertionError) else f"{type(exc).__name__} in {member.doing!r}: {exc}"
    return AssertionError(text) if was_first else SecondaryFailureError(text)


def give_up(context: GroupContext) -> None:
    """Ends the latest run of this rank as far as its transports look for an interrupt."""
    run = context.store.add(f"contract/runs/{context.rank}", 0)
    context.store.set(f"contract/{run}/over", "stuck")
