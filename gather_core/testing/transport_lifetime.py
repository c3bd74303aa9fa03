"""Clauses of the transport contract about its life: names, opening, closing, and a Gatherer that uses it."""

import inspect
import os
import tempfile
import threading
from pathlib import Path
from time import sleep

import pytest

from gather_core.deadline import Deadline
from gather_core.errors import GatherError, RemoteEncodeError, TransportError, UnknownPluginError
from gather_core.registry import JOINT, get_transport, transport_class
from gather_core.spec import parse_spec
from gather_core.testing.member import SLOT_NBYTES, Member, caught
from gather_core.testing.transport_suite import TransportSuite, call_verb, differing, exchange_slots, payload
from gather_core.transport import Capabilities, Transport

_NUM_CYCLES = 20
_NUM_WARM_UP_CYCLES = 2
_NUM_ROUNDS = 30
_SHORT_S = 0.2
_LARGE_NBYTES = 1 << 20


class LifetimeClauses(TransportSuite):
    """From the class to `close`."""

    def test_the_name_and_the_capabilities_are_what_the_registry_expects(self) -> None:
        """`name` can stand in a spec, and `capabilities` is a Capabilities."""
        transport = self.make_transport()
        name = transport.name
        try:
            is_name = [part.name for part in parse_spec(name)] == [name]
        except GatherError:
            is_name = False
        assert is_name, f"name is {name!r}, but must be lower-case letters, digits and underscores"
        assert isinstance(transport.capabilities, Capabilities), f"capabilities is {transport.capabilities!r}"

    def test_the_spec_makes_an_equal_transport(self) -> None:
        """Every option that differs from the default is in `spec`, as the keyword that the constructor takes."""
        transport = self.make_transport()
        required = [p for p in inspect.signature(type(transport)).parameters.values() if p.default is p.empty]
        if required and type(transport) is transport_class(JOINT):
            assert get_transport(transport.spec).spec == transport.spec
            return
        if required:
            pytest.skip("its constructor needs an argument: it is not made from a spec")
        (part,) = parse_spec(transport.spec)
        assert part.name == transport.name, f"spec is {transport.spec!r}, but name is {transport.name!r}"
        again = type(transport)(**part.options)
        assert again.spec == transport.spec, f"the spec {transport.spec!r} makes a transport of spec {again.spec!r}"
        if _is_registered(type(transport)):
            assert get_transport(transport.spec).spec == transport.spec

    def test_two_transports_made_alike_have_the_same_fingerprint(self) -> None:
        """Round 0 compares them between ranks."""
        alike = [self.make_transport() for _ in range(3)]
        prints = {transport.fingerprint() for transport in alike}
        assert len(prints) == 1, f"the fingerprint differs between transports made alike: {sorted(prints)}"

    def test_unavailable_gives_a_reason_or_none_and_opens_nothing(self) -> None:
        """Without a group and with one."""
        transport = self.make_transport()
        before = _in_use()  # after make_transport, which may import much
        reason = transport.unavailable(None)
        assert reason is None or isinstance(reason, str), (
            f"unavailable(None) returned {reason!r}: return a reason, or None where there is none"
        )
        grown = [name for name, there in _in_use().items() if len(there) > len(before[name])]
        assert not grown, f"unavailable(None) left open: {grown}"

        def body(member: Member) -> None:
            reason = transport_type.unavailable(member.context)
            assert reason is None, f"unavailable(context) says {reason!r} of the group that this contract runs on"

        transport_type = type(transport)
        self.run(self._largest(), body)

    def test_open_ends_in_time_where_a_rank_never_comes(self) -> None:
        """With a TransportError; or at once, where there is nothing to connect."""
        world_size, grace_s = self._with_deadline(), self.grace_s

        def body(member: Member) -> None:
            if not member.is_last:
                transport, context, _ = member.prepare()
                member.step("open")
                with member.patience(_SHORT_S + grace_s):
                    failure, took_s = caught(lambda: transport.open(context, SLOT_NBYTES, timeout_s=_SHORT_S))
                assert failure is None or isinstance(failure, TransportError), (
                    f"open with timeout_s={_SHORT_S:g}, to which a rank never came, ended with {failure!r} after "
                    f"{took_s:.2f} s instead of with a TransportError"
                )

        self.run(world_size, body)

    def test_opening_and_closing_leave_nothing_behind(self) -> None:
        """No thread, no file descriptor, no temporary file and no shared memory."""
        grace_s = self.grace_s

        def body(member: Member) -> None:
            for _ in range(_NUM_WARM_UP_CYCLES):
                _cycle(member)
            member.barrier()
            before = _in_use()
            member.barrier()
            for _ in range(_NUM_CYCLES):
                _cycle(member)
            member.barrier()
            left = _left_behind(before, grace_s)
            member.barrier()
            assert not left, f"{_NUM_CYCLES} transports were opened and closed, and what is left is: {left}"

        self.run(min(self._largest(), 2), body)

    def test_close_may_come_before_open_twice_and_after_an_abort(self) -> None:
        """It never raises."""

        def body(member: Member) -> None:
            never_opened, _, _ = member.prepare()
            opened, aborted = member.open(), member.open()
            member.step("close")
            aborted.abort("out of paper")
            for transport, when in [(never_opened, "before open"), (opened, "after open"), (aborted, "after abort")]:
                for again in ("", " for the second time"):
                    failure, _ = caught(transport.close)
                    assert failure is None, f"close {when}{again} raised {failure!r}"

        self.run(self._largest(), body)

    def test_what_a_rank_has_sent_arrives_also_where_it_closes_at_once(self) -> None:
        """Close is not collective: others may still be in the call that this rank has returned from."""
        world_size, grace_s = self._with_peers(), self.grace_s

        def body(member: Member) -> None:
            transport = member.open()
            nbytes = min(transport.round_1_nbytes, _LARGE_NBYTES)
            contents = [payload(("close", rank), nbytes) for rank in range(world_size)]
            member.step("a call, and close")
            views = exchange_slots(transport, contents[member.rank], grace_s)
            if member.is_last:
                transport.close()
                member.forget(transport)
                return
            wrong = differing([view[:nbytes] for view in views], contents)
            assert not wrong, f"a rank closed right after its call, and at another: {wrong}"

        self.run(world_size, body)

    def test_the_store_does_not_grow_with_the_rounds(self) -> None:
        """What `open` writes is deleted for it; what verbs write is for the transport to delete."""
        world_size = self._largest()

        def body(member: Member) -> None:
            transport, store = member.open_with_ledger()
            for number in range(_NUM_ROUNDS):
                call_verb(transport, "all_gather_slots", world_size, salt=number)
            assert store.num_keys < _NUM_ROUNDS, (
                f"{store.num_keys} keys are left in the store after {_NUM_ROUNDS} rounds: delete those of rounds that "
                "all ranks have left"
            )

        self.run(world_size, body)

    def test_a_gatherer_over_it_returns_exact_objects(self) -> None:
        """Every operation, with objects that fit in a slot and objects that do not."""
        world_size = self._largest()

        def body(member: Member) -> None:
            with member.gatherer() as gatherer:
                for large in (10, SLOT_NBYTES - 200, 5 * SLOT_NBYTES):
                    objects = [("rank", r, payload(r, large if r % 2 == 0 else 30)) for r in range(world_size)]
                    own, root = objects[member.rank], world_size - 1
                    member.step(f"operations with objects of {large} bytes")
                    assert gatherer.all_gather(own) == objects, f"all_gather of {large} bytes"
                    gathered = gatherer.gather(own, dst=root)
                    assert gathered == (objects if member.is_last else None), f"gather of {large} bytes"
                    assert gatherer.broadcast(own, src=root) == objects[root], f"broadcast of {large} bytes"
                member.barrier()

        self.run(world_size, body)

    def test_a_rank_that_cannot_encode_fails_every_rank_and_leaves_the_group_usable(self) -> None:
        """What the first round is for."""
        world_size = self._largest()

        def body(member: Member) -> None:
            with member.gatherer() as gatherer:
                own: object = threading.Lock() if member.is_last else "fine"
                failure, _ = caught(gatherer.all_gather, own)
                assert isinstance(failure, RemoteEncodeError), f"an object that cannot be encoded raised {failure!r}"
                assert list(failure.failures) == [world_size - 1]
                assert gatherer.all_gather(member.rank) == list(range(world_size))
                member.barrier()

        self.run(world_size, body)


def _is_registered(transport: type[Transport]) -> bool:
    try:
        return transport_class(transport.name) is transport
    except UnknownPluginError:
        return False


def _cycle(member: Member) -> None:
    transport = member.open()
    exchange_slots(transport, b"x")
    member.barrier()
    transport.close()
    member.forget(transport)


def _in_use() -> dict[str, set[object]]:
    """What this process has, by kind; files also of others, which so must not count one by one."""
    return {
        "threads": set(threading.enumerate()),
        "descriptors": _names("/proc/self/fd"),
        "temporary files": _names(tempfile.gettempdir()),
        "shared memory": _names("/dev/shm"),
    }


def _names(folder: str) -> set[object]:
    return set(os.listdir(folder)) if Path(folder).is_dir() else set()


def _left_behind(before: dict[str, set[object]], settle_s: float) -> str:
    """Says what has grown by as many as there were cycles, and stays so."""
    deadline = Deadline(settle_s)
    while True:
        now = {name: there - before[name] for name, there in _in_use().items()}
        left = {name: there for name, there in now.items() if len(there) >= _NUM_CYCLES}
        if not left or deadline.passed():
            return ", ".join(f"{len(there)} {name}, such as {min(map(str, there))}" for name, there in left.items())
        sleep(0.01)
