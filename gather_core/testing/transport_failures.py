"""Clauses of the transport contract about ranks that are late, stay away or give up."""

import threading
from collections.abc import Callable
from time import monotonic

from gather_core.background import Background
from gather_core.deadline import POLL_S
from gather_core.errors import TransportError, TransportTimeoutError
from gather_core.testing.member import TIMEOUT_S, GaveUpError, Member, caught
from gather_core.testing.transport_suite import VERBS, TransportSuite, call_verb
from gather_core.transport import Transport

_SHORT_S = 0.2
"""The timeout of an exchange to which a rank never comes, in seconds."""
_LATE_S = POLL_S + 0.1
"""How late a rank comes that is still waited for; longer than any slice that a wait may be cut into."""
_SOON_S = 8 * POLL_S
"""How long a wait may go without an interrupt being looked for, on a busy machine, in seconds."""
_NUM_ABORTS = 3


class InterruptedInTest(BaseException):
    """What `check_interrupt` raises in a test; not an Exception, as a Ctrl-C is none."""


class FailureClauses(TransportSuite):
    """Deadlines, interrupts and aborts. Of what keeps no deadline only little can be asked."""

    def test_a_late_rank_is_waited_for(self) -> None:
        """As long as it comes within the timeout."""
        world_size = self._with_peers()

        def body(member: Member) -> None:
            transport = member.open()
            if member.is_last:
                threading.Event().wait(_LATE_S)
            wrong = call_verb(transport, "all_gather_slots", world_size, salt="late")
            assert not wrong, f"with a rank that came {_LATE_S} s late, of {TIMEOUT_S:g} s: {wrong}"

        self.run(world_size, body)

    def test_a_rank_that_never_comes_is_a_timeout(self) -> None:
        """On all others, at their deadline and not before."""
        world_size, grace_s = self._with_deadline(), self.grace_s

        def body(member: Member) -> None:
            transports = _one_per_verb(member)
            if not member.is_last:
                with member.patience(_SHORT_S + grace_s):
                    for verb, (failure, took_s) in _call_all(transports, world_size, _SHORT_S).items():
                        _check_timeout(failure, took_s, verb)

        self.run(world_size, body)

    def test_after_a_failure_no_verb_returns_data(self) -> None:
        """Also where the missing rank comes after all: what it sends belongs to a call that has failed."""
        world_size, grace_s = self._with_deadline(), self.grace_s

        def body(member: Member) -> None:
            transports = _one_per_verb(member)
            if member.is_last:
                member.wait_for("the first call failed", member.others)
            with member.patience(_SHORT_S + grace_s):
                _call_all(transports, world_size, _SHORT_S)
            member.signal("the first call failed")
            member.barrier()
            timeout_s = _SHORT_S if member.is_last else grace_s  # what raises at once needs none
            with member.patience(2 * grace_s):
                outcomes = _call_all(transports, world_size, timeout_s)
            for verb, (failure, _) in outcomes.items():
                assert failure is not None, f"{verb} returned data although the call before it had failed"
                assert isinstance(failure, TransportError), (
                    f"{verb} after a failure raised {failure!r} instead of a TransportError"
                )

        self.run(world_size, body)

    def test_a_wait_looks_for_interrupts_and_lets_them_pass(self) -> None:
        """`check_interrupt` is called at least every 0.25 s while a verb waits; what it raises ends the verb."""
        world_size, grace_s = self._with_deadline(), self.grace_s

        def body(member: Member) -> None:
            transports = _one_per_verb(member)
            if not member.is_last:
                interrupts: dict[str, list[float]] = {verb: [] for verb in transports}
                for verb, transport in transports.items():
                    transport.check_interrupt = _interrupt(interrupts[verb])
                started = monotonic()
                for verb, (failure, took_s) in _call_all(transports, world_size, grace_s).items():
                    _check_interrupted(failure, took_s, [at - started for at in interrupts[verb]], verb)

        self.run(world_size, body)

    def test_an_abort_reaches_the_peers_that_wait(self) -> None:
        """They raise a TransportError long before their deadline; each that does aborts in turn."""
        world_size, grace_s = self._with_deadline(), self.grace_s

        def body(member: Member) -> None:
            transport = member.open()
            if member.is_last:
                member.wait_for("about to wait", member.others)
                threading.Event().wait(POLL_S)
                transport.abort("out of paper")
            else:
                member.signal("about to wait")
                with member.patience(grace_s):
                    failure, took_s = _alone(transport, "all_gather_slots", world_size, TIMEOUT_S)
                transport.abort("another rank aborted")
                assert isinstance(failure, TransportError), (
                    f"a rank waited for one that had aborted, and after {took_s:.2f} s got {failure!r} instead of a "
                    "TransportError"
                )

        self.run(world_size, body)

    def test_an_abort_ends_this_ranks_own_verb(self) -> None:
        """Another thread called it; the verb raises a TransportError, at the latest at its deadline."""
        world_size, grace_s = self._with_deadline(), self.grace_s

        def body(member: Member) -> None:
            transport = member.open()
            if not member.is_last:
                timeout_s = grace_s / 2
                call = Background(lambda _: _alone(transport, "all_gather_slots", world_size, timeout_s)).start()
                call.wait(POLL_S)
                transport.abort("out of paper")
                with member.patience(timeout_s + grace_s):
                    assert call.wait(timeout_s + 2 * grace_s), "abort() did not end the verb of another thread"
                failure, took_s = call.result()
                assert isinstance(failure, TransportError), (
                    f"abort() by another thread ended a verb with {failure!r} after {took_s:.2f} s instead of with a "
                    "TransportError"
                )

        self.run(world_size, body)

    def test_an_abort_returns_at_once_from_any_thread_and_may_be_repeated(self) -> None:
        """Whether a verb is under way or not."""
        world_size, grace_s = self._largest(), self.grace_s

        def body(member: Member) -> None:
            transport = member.open()
            member.step("abort")
            aborts = [Background(lambda _: caught(transport.abort, "out of paper")) for _ in range(_NUM_ABORTS)]
            for abort in aborts:
                abort.start()
                assert abort.wait(grace_s), f"abort() had not returned after {grace_s:g} s: it must never block"
                failure, _ = abort.result()
                assert failure is None, f"abort() raised {failure!r}"

        self.run(world_size, body)


def _one_per_verb(member: Member) -> dict[str, Transport]:
    """Opens a transport for each verb, as a failure makes it unusable."""
    return {verb: member.open() for verb in VERBS}


def _alone(transport: Transport, verb: str, world_size: int, timeout_s: float) -> tuple[BaseException | None, float]:
    """Calls a verb to which not all ranks come; returns what it raises, if anything, and the seconds it took."""
    return caught(lambda: call_verb(transport, verb, world_size, salt="alone", timeout_s=timeout_s))


def _call_all(
    transports: dict[str, Transport], world_size: int, timeout_s: float
) -> dict[str, tuple[BaseException | None, float]]:
    """Calls every verb on its own transport, all at the same time; see `_alone`."""

    def start(verb: str, transport: Transport) -> Background[tuple[BaseException | None, float]]:
        return Background(lambda _: _alone(transport, verb, world_size, timeout_s)).start()

    calls = {verb: start(verb, transport) for verb, transport in transports.items()}
    for verb, call in calls.items():
        assert call.wait(TIMEOUT_S), f"{verb} with timeout_s={timeout_s:g} is stuck"
    return {verb: call.result() for verb, call in calls.items()}


def _check_timeout(failure: BaseException | None, took_s: float, verb: str) -> None:
    what = f"{verb} with timeout_s={_SHORT_S:g}, while a rank never came,"
    assert not isinstance(failure, GaveUpError), f"{what} did not give up: {failure}"
    assert isinstance(failure, TransportTimeoutError), (
        f"{what} ended with {failure!r} after {took_s:.2f} s instead of a TransportTimeoutError"
    )
    assert took_s > 0.8 * _SHORT_S, f"{what} gave up after {took_s:.2f} s already"


def _check_interrupted(failure: BaseException | None, took_s: float, called_after_s: list[float], verb: str) -> None:
    assert called_after_s, f"{verb} waited for {took_s:.2f} s and never called check_interrupt"
    first_s = called_after_s[0]
    assert first_s < _SOON_S, f"{verb} first called check_interrupt after {first_s:.2f} s of waiting"
    assert isinstance(failure, InterruptedInTest), (
        f"{verb} ended with {failure!r} where check_interrupt had raised InterruptedInTest"
    )


def _interrupt(called_at: list[float]) -> Callable[[], None]:
    def raise_now() -> None:
        called_at.append(monotonic())
        raise InterruptedInTest

    return raise_now
