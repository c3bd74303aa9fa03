"""Clauses of the transport contract about bytes: what arrives, where, and in whose memory."""

from collections.abc import Sequence
from itertools import product
from random import Random
from time import monotonic, sleep

import pytest

from gather_core.background import Background
from gather_core.memory import ALIGNMENT, aligned_buffer
from gather_core.testing.member import SLOT_NBYTES, TIMEOUT_S, Member
from gather_core.testing.transport_suite import (
    VERBS,
    ExactExchange,
    TransportSuite,
    call_verb,
    differing,
    exchange_slots,
    gathered_sizes,
    is_aligned,
    payload,
    routed_sizes,
)
from gather_core.transport import Transport

_LARGE_NBYTES = 1 << 20
_GIVEN_NBYTES = (1 << 20) + 64
_LINGER_S = 0.05
"""How long a borrowed view is watched while others are in their next call, in seconds."""


class ExchangeClauses(TransportSuite):
    """Round 1 and round 2 on healthy ranks."""

    def test_every_slot_reaches_every_rank_in_rank_order_round_after_round(self, world_size: int) -> None:
        """Fill lengths differ between ranks and rounds, from nothing to the whole slot; some slots are all zeros."""

        def body(member: Member) -> None:
            transport = member.open()
            assert (transport.rank, transport.slot_nbytes) == (member.rank, SLOT_NBYTES), (
                f"`rank` and `slot_nbytes` are {transport.rank} and {transport.slot_nbytes}, "
                f"where `open` got {member.rank} and {SLOT_NBYTES}"
            )
            ladder = [0, SLOT_NBYTES, 1, 64, 100, 63, SLOT_NBYTES - 1, 65]
            for number in range(24):
                member.step(f"round {number}")
                fills = [ladder[(number + 3 * rank) % len(ladder)] for rank in range(world_size)]
                contents = [payload((number, rank), nbytes) for rank, nbytes in enumerate(fills)]
                if number % 8 == 7:
                    contents = [bytes(nbytes) for nbytes in fills]
                wrong = _wrong_slots(exchange_slots(transport, contents[member.rank]), contents)
                assert not wrong, f"round {number}, slots filled with {fills} bytes: {wrong}"

        self.run(world_size, body)

    def test_views_of_slots_are_read_only_and_aligned(self) -> None:
        """Each can be decoded in place, and none can be written."""

        def body(member: Member) -> None:
            transport = member.open()
            for nbytes in (65, SLOT_NBYTES):
                views = exchange_slots(transport, payload(member.rank, nbytes))
                for rank, view in enumerate(views):
                    assert view.readonly, f"the view of rank {rank}'s slot is writable: return view.toreadonly()"
                    assert is_aligned(view), f"the view of rank {rank}'s slot is not aligned to {ALIGNMENT} bytes"

        self.run(self._largest(), body)

    def test_borrowed_views_stay_intact_while_others_are_in_their_next_call(self) -> None:
        """A fast rank must not overwrite what a slow one still reads."""
        world_size = self._with_peers()

        def body(member: Member) -> None:
            transport = member.open()
            for verb, slow in product(VERBS, (0, world_size - 1)):
                contents = [payload((verb, slow, rank), SLOT_NBYTES) for rank in range(world_size)]
                views = _gather(transport, contents, verb)
                point = f"the others go on, after {verb}, without rank {slow}"
                if member.rank == slow:
                    member.wait_for(point, member.others)
                    _watch(member, views, contents, verb)
                slot = transport.slot(SLOT_NBYTES)
                slot[:SLOT_NBYTES] = b"\xee" * SLOT_NBYTES
                member.signal(point)
                transport.all_gather_slots(SLOT_NBYTES, timeout_s=TIMEOUT_S)

        self.run(world_size, body)

    def test_writable_views_are_the_callers_for_good(self) -> None:
        """With `may_give`, what is returned may be kept and written into, whatever the ranks do since."""

        def body(member: Member) -> None:
            transport = member.open(may_give=True)
            nbytes = min(transport.round_1_nbytes, _GIVEN_NBYTES)
            kept: list[tuple[memoryview, bytes, str]] = []
            for number, verb in enumerate(4 * ("all_gather_slots", "all_gather_exact")):
                contents = [payload((number, rank), nbytes) for rank in range(member.world_size)]
                views = _gather(transport, contents, verb)
                given = [(view, content) for view, content in zip(views, contents, strict=True) if not view.readonly]
                for rank, (view, content) in enumerate(given):
                    changed = b"\xc3" * 8 + content[8:]
                    view[:8] = changed[:8]
                    kept.append((view, changed, f"what rank {rank} gave with {verb} in exchange {number}"))
                del views, given
                for view, content, what in kept:
                    assert bytes(view[: len(content)]) == content, (
                        f"{what} has changed: it was writable, so the caller's"
                    )
                if number % 3 == 2:
                    del kept[::2]

        self.run(self._largest(), body)

    def test_a_slot_is_writable_aligned_and_as_long_as_asked(self) -> None:
        """For every length up to the slot's, and for more where there is memory."""

        def body(member: Member) -> None:
            transport = member.open()
            most = min(transport.round_1_nbytes, _LARGE_NBYTES)
            for nbytes in (0, 1, 64, SLOT_NBYTES - 1, SLOT_NBYTES, most, 64):
                try:
                    slot = transport.slot(nbytes)
                except MemoryError:
                    assert nbytes > SLOT_NBYTES, f"slot({nbytes}) must never fail: slot_nbytes is {SLOT_NBYTES}"
                    continue
                assert len(slot) >= nbytes, f"slot({nbytes}) has {len(slot)} bytes"
                assert not slot.readonly, f"slot({nbytes}) is read-only"
                assert is_aligned(slot), f"slot({nbytes}) is not aligned to {ALIGNMENT} bytes"
                slot[:nbytes] = payload(member.rank, nbytes)

        self.run(self._largest(), body)

    def test_round_1_carries_what_it_promises(self, world_size: int) -> None:
        """`round_1_nbytes` is the same on every rank, at least a slot, and a payload of that length arrives."""

        def body(member: Member) -> None:
            transport = member.open()
            most = transport.round_1_nbytes
            assert most >= SLOT_NBYTES, f"round_1_nbytes is {most}, less than slot_nbytes, {SLOT_NBYTES}"
            numbers = [int(bytes(view[:20])) for view in exchange_slots(transport, b"%020d" % most)]
            assert len(set(numbers)) == 1, f"round_1_nbytes differs between ranks: {numbers}"
            most = min(most, _LARGE_NBYTES)
            for large in {0, world_size - 1}:
                fills = [most if rank == large else 10 for rank in range(world_size)]
                contents = [payload((large, rank), nbytes) for rank, nbytes in enumerate(fills)]
                wrong = _wrong_slots(exchange_slots(transport, contents[member.rank]), contents)
                assert not wrong, f"round 1 is to carry {transport.round_1_nbytes} bytes, but with {fills}: {wrong}"

        self.run(world_size, body)

    def test_payloads_of_any_size_reach_every_rank_exactly(self, world_size: int) -> None:
        """`all_gather_exact`, of parts that are uneven, empty or read-only."""

        def body(member: Member) -> None:
            transport = member.open()
            for number, matrix in enumerate(gathered_sizes(world_size)):
                exchange = ExactExchange(transport, matrix, routed=False, salt=number)
                sizes = [row[0] for row in matrix]
                member.step(f"all_gather_exact of {sizes} bytes")
                exchange.call()
                wrong = exchange.wrong()
                assert not wrong, f"all_gather_exact of {sizes} bytes: {wrong}"

        self.run(world_size, body)

    def test_routed_payloads_reach_the_rank_that_they_are_for(self, world_size: int) -> None:
        """`all_to_all_exact`, as gather and scatter use it too."""

        def body(member: Member) -> None:
            transport = member.open()
            for number, matrix in enumerate(routed_sizes(world_size)):
                exchange = ExactExchange(transport, matrix, routed=True, salt=number)
                member.step(f"all_to_all_exact of {matrix} bytes")
                exchange.call()
                wrong = exchange.wrong()
                assert not wrong, f"all_to_all_exact of {matrix} bytes: {wrong}"

        self.run(world_size, body)

    def test_exact_verbs_touch_only_what_is_theirs(self) -> None:
        """The bytes around `into` and the parts stay as they are; what is returned is `into`, or read-only."""
        world_size = self._largest()

        def body(member: Member) -> None:
            transport = member.open()
            for routed in (False, True):
                matrices = routed_sizes(world_size) if routed else gathered_sizes(world_size)
                for number, matrix in enumerate(matrices):
                    what = f"{VERBS[1 + routed]} of {matrix} bytes"
                    member.step(what)
                    exchange = ExactExchange(transport, matrix, routed=routed, salt=number)
                    exchange.call()
                    _check_memory(exchange, what)

        self.run(world_size, body)

    def test_verbs_follow_each_other_in_any_order(self) -> None:
        """A hundred rounds of a random script, the same on all ranks."""
        world_size = self._largest()

        def body(member: Member) -> None:
            transport = member.open()
            random = Random(world_size)
            for number in range(100):
                verb = random.choice(VERBS)
                member.step(f"{verb}, call {number} of a script")
                matrix = [[random.choice((0, 10, 900, 2500)) for _ in range(world_size)] for _ in range(world_size)]
                wrong = _scripted_call(transport, verb, matrix, number)
                assert not wrong, f"call {number} of a script of all verbs, {verb}: {wrong}"

        self.run(world_size, body)

    def test_two_transports_of_a_group_do_not_cross(self) -> None:
        """Each of them serves a Gatherer, and threads use these at the same time."""
        world_size, grace_s = self._with_peers(), self.grace_s
        if self.make_transport().capabilities.shares_group:
            pytest.skip("capabilities.shares_group: never beside anything else on the group")

        def body(member: Member) -> None:
            first, second = member.open(), member.open()
            member.step("two transports at the same time")

            def use(transport: Transport, salt: str) -> str:
                for number, verb in enumerate(5 * VERBS):
                    if wrong := call_verb(transport, verb, world_size, salt=(salt, number), timeout_s=grace_s):
                        return f"{verb}: {wrong}"
                return ""

            beside = Background(lambda _: use(second, "second")).start()
            wrong = use(first, "first")
            assert not wrong, f"with two transports open on the group, on the first: {wrong}"
            assert beside.wait(TIMEOUT_S), "with two transports open on the group, the second does not go on"
            wrong = beside.result()
            assert not wrong, f"with two transports open on the group, on the second: {wrong}"

        self.run(world_size, body)


def _wrong_slots(views: Sequence[memoryview], contents: Sequence[bytes]) -> str:
    """Says what is wrong with slots, which may be longer than what is filled."""
    if len(views) != len(contents):
        return f"{len(views)} views for {len(contents)} ranks"
    return differing([view[: len(content)] for view, content in zip(views, contents, strict=True)], contents)


def _gather(transport: Transport, contents: Sequence[bytes], verb: str) -> Sequence[memoryview]:
    """Returns the views of one call, checked; every rank sends the same to all."""
    if verb == "all_gather_slots":
        views = exchange_slots(transport, contents[transport.rank])
    else:
        parts = [memoryview(contents[transport.rank])]
        sizes = list(map(len, contents))
        into = list(map(aligned_buffer, sizes))
        if verb == "all_gather_exact":
            views = transport.all_gather_exact(parts, sizes, into=into, timeout_s=TIMEOUT_S)
        else:
            matrix = [[size] * len(sizes) for size in sizes]
            views = transport.all_to_all_exact([parts] * len(sizes), matrix, into=into, timeout_s=TIMEOUT_S)
    wrong = _wrong_slots(views, contents)
    assert not wrong, f"{verb}: {wrong}"
    return views


def _watch(member: Member, views: Sequence[memoryview], contents: Sequence[bytes], verb: str) -> None:
    """Reads borrowed views while the other ranks wait for this one in their next call."""
    end = monotonic() + _LINGER_S
    while monotonic() < end:
        wrong = _wrong_slots(views, contents)
        assert not wrong, (
            f"what {verb} returned has changed before this rank's next call, as other ranks went on: {wrong}; keep two "
            "buffers and use them in turn, or copy"
        )
        member.check()
        sleep(0.005)


def _check_memory(exchange: ExactExchange, what: str) -> None:
    for rank, guarded in enumerate(exchange.into):
        assert guarded.is_intact(), f"{what} wrote beyond into[{rank}]"
    assert exchange.parts_are_unchanged(), f"{what} changed the parts that it was to send"
    wrong = exchange.ownership_error()
    assert not wrong, f"{what}: {wrong}"


def _scripted_call(transport: Transport, verb: str, matrix: Sequence[Sequence[int]], number: int) -> str:
    if verb == "all_gather_slots":
        contents = [payload((number, rank), min(row[0], SLOT_NBYTES)) for rank, row in enumerate(matrix)]
        return _wrong_slots(exchange_slots(transport, contents[transport.rank]), contents)
    routed = verb == "all_to_all_exact"
    exchange = ExactExchange(
        transport, matrix if routed else [[row[0]] * len(row) for row in matrix], routed=routed, salt=number
    )
    exchange.call()
    return exchange.wrong()
