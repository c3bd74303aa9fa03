"""The transport contract itself: a correct transport passes all of it, and each broken one fails where it should."""

import inspect
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

import broken_transports as broken
from gather_core import Capabilities, GroupContext, Transport
from gather_core.testing.thread_ranks import RanksStuckError, local_contexts, run_in_threads
from gather_core.testing.transport_contract import TransportContract
from store_transport import StoreTransport

WORLD_SIZE = 2
NUM_WORKERS = 32

SLOTS = "test_every_slot_reaches_every_rank_in_rank_order_round_after_round"
VIEWS = "test_views_of_slots_are_read_only_and_aligned"
BORROWED = "test_borrowed_views_stay_intact_while_others_are_in_their_next_call"
GIVEN = "test_writable_views_are_the_callers_for_good"
SLOT = "test_a_slot_is_writable_aligned_and_as_long_as_asked"
ROUND_1 = "test_round_1_carries_what_it_promises"
EXACT = "test_payloads_of_any_size_reach_every_rank_exactly"
ROUTED = "test_routed_payloads_reach_the_rank_that_they_are_for"
MEMORY = "test_exact_verbs_touch_only_what_is_theirs"
SCRIPT = "test_verbs_follow_each_other_in_any_order"
CROSSING = "test_two_transports_of_a_group_do_not_cross"
LATE = "test_a_late_rank_is_waited_for"
TIMEOUT = "test_a_rank_that_never_comes_is_a_timeout"
AFTERWARDS = "test_after_a_failure_no_verb_returns_data"
INTERRUPT = "test_a_wait_looks_for_interrupts_and_lets_them_pass"
ABORT_PEERS = "test_an_abort_reaches_the_peers_that_wait"
ABORT_OWN = "test_an_abort_ends_this_ranks_own_verb"
ABORT_RETURNS = "test_an_abort_returns_at_once_from_any_thread_and_may_be_repeated"
NAME = "test_the_name_and_the_capabilities_are_what_the_registry_expects"
SPEC = "test_the_spec_makes_an_equal_transport"
FINGERPRINT = "test_two_transports_made_alike_have_the_same_fingerprint"
UNAVAILABLE = "test_unavailable_gives_a_reason_or_none_and_opens_nothing"
OPEN = "test_open_ends_in_time_where_a_rank_never_comes"
LEFT = "test_opening_and_closing_leave_nothing_behind"
CLOSE = "test_close_may_come_before_open_twice_and_after_an_abort"
CLOSE_AT_ONCE = "test_what_a_rank_has_sent_arrives_also_where_it_closes_at_once"
STORE = "test_the_store_does_not_grow_with_the_rounds"
GATHERER = "test_a_gatherer_over_it_returns_exact_objects"
ENCODE = "test_a_rank_that_cannot_encode_fails_every_rank_and_leaves_the_group_usable"

ALONE = {LEFT, UNAVAILABLE}
"""Tests that look at the whole process, and so run when nothing else does."""
EXACTLY = {EXACT, ROUTED, MEMORY, SCRIPT, CROSSING}
"""Tests of round 2."""
BYTES = EXACTLY | {SLOTS, BORROWED, GIVEN, ROUND_1, LATE, STORE, CLOSE_AT_ONCE, GATHERER, ENCODE}
"""Tests that wrong bytes can fail."""
WAITS = {TIMEOUT, AFTERWARDS, INTERRUPT, ABORT_PEERS, ABORT_OWN, OPEN}
"""Tests that a failing wait can fail."""
_SETTLE_S = 0.5
"""How long to look for what goes away by itself, in seconds."""


@dataclass(frozen=True)
class Fault:
    """What the contract is to say of a broken transport."""

    transport: type[Transport]
    test: str
    """Finds it."""
    message: str
    """Of that test; a regular expression."""
    also: frozenset[str] | set[str] = frozenset()
    """Tests that may fail as a consequence."""


FAULTS = [
    Fault(broken.ReversesTheRanks, SLOTS, "at position 1 is what rank 0 sent", BYTES),
    Fault(broken.ForgetsTheLastRank, SLOTS, "1 views for 2 ranks", BYTES | {VIEWS}),
    Fault(broken.RoundsSizesDown, SLOTS, r"what rank \d sent arrives with 64 of its 100 bytes", BYTES),
    Fault(broken.TakesSlotsForText, SLOTS, r"what rank \d sent arrives with 0 of its \d+ bytes", BYTES),
    Fault(broken.TruncatesLongSlots, ROUND_1, "to carry 4096 bytes, but .* arrives with 1024", {CLOSE_AT_ONCE, GIVEN}),
    Fault(broken.PromisesOtherSizesPerRank, ROUND_1, r"differs between ranks: \[1024, 1088\]", {CLOSE_AT_ONCE, GIVEN}),
    Fault(broken.LendsWritableViews, VIEWS, "is writable: return view.toreadonly"),
    Fault(broken.LendsUnalignedViews, VIEWS, "is not aligned to 64 bytes"),
    Fault(broken.LendsAnUnalignedSlot, SLOT, r"slot\(1\) is not aligned to 64 bytes"),
    Fault(broken.LendsTooShortASlot, SLOT, r"slot\(1\) has 0 bytes", BYTES | WAITS | {VIEWS, LEFT}),
    Fault(broken.NeedsRoomBesideTheSlot, SLOT, r"slot\(1023\) must never fail: slot_nbytes is 1024", BYTES | {VIEWS}),
    Fault(broken.ReusesOneBuffer, BORROWED, "rank|changed", BYTES),
    Fault(broken.GivesWhatItUsesAgain, GIVEN, r"what rank \d gave with all_gather_slots in exchange \d+ has changed"),
    Fault(broken.WritesBeyondInto, MEMORY, r"all_gather_exact of .* wrote beyond into\[0\]"),
    Fault(broken.ClearsThePartsItHasSent, MEMORY, "all_gather_exact of .* changed the parts"),
    Fault(broken.ReturnsWritableMemoryOfItsOwn, MEMORY, r"rank 0 is neither into\[0\] nor read-only"),
    Fault(broken.StopsAtAnEmptyPart, EXACT, "all_gather_exact of .* bytes, arrives changed", EXACTLY),
    Fault(broken.RoutesToTheNeighbour, ROUTED, "all_to_all_exact of .*: what rank", EXACTLY),
    Fault(broken.RepeatsARoundAfterRoutedOnes, SCRIPT, "of a script", EXACTLY | {GATHERER}),
    Fault(broken.MixesTheTransportsOfAGroup, CROSSING, "two transports"),
    Fault(broken.GivesUpAfterASlice, LATE, "TransportTimeoutError .* did not come within 0.25 s", BYTES | WAITS),
    Fault(broken.IgnoresTheDeadline, TIMEOUT, "did not give up: it still waited", {AFTERWARDS, OPEN}),
    Fault(broken.RaisesAnErrorOfItsStore, TIMEOUT, r"ended with RuntimeError\(.*instead of a Transport", WAITS),
    Fault(broken.NeverLooksForInterrupts, INTERRUPT, "waited for .* and never called check_interrupt"),
    Fault(broken.RemembersAnEarlierInterrupt, INTERRUPT, "waited for .* and never called check_interrupt"),
    Fault(broken.SwallowsInterrupts, INTERRUPT, r"ended with PeerLostError\(.* where check_interrupt had raised"),
    Fault(broken.ReturnsStaleBytesAfterAFailure, AFTERWARDS, "returned data although the call before it had failed"),
    Fault(broken.GoesOnAfterAFailure, AFTERWARDS, "returned data although the call before it had failed"),
    Fault(broken.TellsNobodyOfAnAbort, ABORT_PEERS, "a rank waited for one that had aborted, and after .* GaveUpError"),
    Fault(broken.ClearsItsFieldsInAbort, ABORT_OWN, r"ended a verb with TypeError\("),
    Fault(broken.BlocksInAbort, ABORT_RETURNS, r"abort\(\) had not returned after 2 s"),
    Fault(
        broken.RaisesInASecondAbort, ABORT_RETURNS, r"abort\(\) raised RuntimeError\('aborted already'\)", {ABORT_PEERS}
    ),
    Fault(broken.IsNamedLikeAClass, NAME, "name is 'Store Transport', but must be lower-case", {SPEC}),
    Fault(broken.HasCapabilitiesOfItsOwnKind, NAME, "capabilities is <"),
    Fault(broken.LeavesAnOptionOutOfItsSpec, SPEC, "'store:pause_s=0.002' makes a transport of spec 'store'"),
    Fault(broken.IsNeverLikeAnother, FINGERPRINT, "differs between transports made alike", {GATHERER, ENCODE}),
    Fault(broken.SaysFalseWhereItIsAvailable, UNAVAILABLE, r"unavailable\(None\) returned False: return a reason"),
    Fault(broken.OpensAFileToSeeWhetherItIsAvailable, UNAVAILABLE, "left open: .*descriptors"),
    Fault(broken.OpensForEver, OPEN, "with timeout_s=0.2, to which a rank never came, ended with GaveUpError"),
    Fault(broken.LeavesAThread, LEFT, "20 transports were opened and closed, and what is left is: 40 threads"),
    Fault(
        broken.LeavesADescriptor, LEFT, r"20 transports were opened and closed, and what is left is: \d+ descriptors"
    ),
    Fault(broken.LeavesAFile, LEFT, "20 transports were opened and closed, and what is left is: 40 temporary files"),
    Fault(broken.ClosesOnlyOnce, CLOSE, "close before open for the second time raised ValueError"),
    Fault(broken.ClosesOnlyWhatIsOpen, CLOSE, r"close before open raised AttributeError\("),
    Fault(broken.TakesBackWhatItHasSent, CLOSE_AT_ONCE, "TransportTimeoutError in 'a call, and close'"),
    Fault(broken.KeepsAKeyPerRound, STORE, "31 keys are left in the store after 30 rounds"),
]


class ContractOf(TransportContract):
    """The contract as a broken transport's author runs it, in short; not collected by itself."""

    world_sizes = (WORLD_SIZE,)
    grace_s = 2.0
    scenario_timeout_s = 30.0

    def __init__(self, transport: type[Transport]) -> None:
        self.make_transport = transport  # type: ignore[method-assign]

    def verdict(self, test: str) -> str | None:
        """What a test of the contract says; None: nothing."""
        method = getattr(self, test)
        if test in ALONE:
            vars(self)["grace_s"] = _SETTLE_S
        arguments = {"world_size": WORLD_SIZE} if "world_size" in inspect.signature(method).parameters else {}
        try:
            method(**arguments)
        except Exception as exc:
            return str(exc) or repr(exc)
        return None


def contract_tests() -> list[str]:
    return [name for name in dir(TransportContract) if name.startswith("test_")]


Verdicts = dict[type[Transport], dict[str, str]]


@pytest.fixture(scope="module")
def verdicts() -> Verdicts:
    """What each test of the contract says of each broken transport that it rejects; found with many at a time."""
    transports = [fault.transport for fault in FAULTS]
    found: dict[tuple[type[Transport], str], str | None] = {}
    with ThreadPoolExecutor(NUM_WORKERS) as workers:
        pairs = [(transport, test) for transport in transports for test in contract_tests() if test not in ALONE]
        found.update(zip(pairs, workers.map(lambda pair: ContractOf(pair[0]).verdict(pair[1]), pairs), strict=True))
    for transport in transports:
        found.update({(transport, test): ContractOf(transport).verdict(test) for test in ALONE})
    broken.clean_up()
    verdicts: Verdicts = {transport: {} for transport in transports}
    for (transport, test), text in found.items():
        if text is not None:
            verdicts[transport][test] = text
    return verdicts


class TestStore(TransportContract):
    """The correct transport that all the broken ones are made of."""

    def make_transport(self) -> Transport:
        return StoreTransport()


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.transport.__name__ for fault in FAULTS])
def test_a_broken_transport_is_found_by_the_test_of_what_it_breaks(fault: Fault, verdicts: Verdicts) -> None:
    found = verdicts[fault.transport]
    assert re.search(fault.message, found.get(fault.test, "it passed")), found
    assert set(found) <= {fault.test} | fault.also


def test_every_test_of_the_contract_finds_something() -> None:
    tests = {fault.test for fault in FAULTS}
    beside_others = {GATHERER, ENCODE}  # what a Gatherer needs, the other clauses ask for one by one
    assert tests | beside_others == set(contract_tests())


def test_the_tests_with_a_gatherer_find_wrong_bytes_too(verdicts: Verdicts) -> None:
    assert {GATHERER, ENCODE} <= set(verdicts[broken.ReversesTheRanks])


class WithoutDeadline(StoreTransport):
    capabilities = Capabilities(locality="any", deadline=False, shares_group=True)


def test_what_a_transport_says_that_it_cannot_is_not_asked_of_it() -> None:
    skipped = {}
    for test in contract_tests():
        try:
            ContractOf(WithoutDeadline).verdict(test)
        except pytest.skip.Exception as reason:
            skipped[test] = str(reason)
    assert set(skipped) == WAITS | {CROSSING}
    assert "capabilities.shares_group" in skipped[CROSSING]
    assert "capabilities.deadline is False" in skipped[TIMEOUT]


def test_without_peers_nothing_is_asked_about_them() -> None:
    class Alone(ContractOf):
        world_sizes = (1,)

    with pytest.raises(pytest.skip.Exception, match="there is never a peer"):
        Alone(StoreTransport).verdict(ABORT_PEERS)


def test_a_stuck_rank_is_reported_with_its_step_and_its_stack() -> None:
    released = threading.Event()

    def body(context: GroupContext) -> None:
        if context.rank == 1:
            threading.current_thread().name = "rank 1, in 'the waiting room'"
            wait_in_vain(released)

    with pytest.raises(RanksStuckError) as raised:
        run_in_threads(local_contexts(3), body, 0.2, lambda context: released.set())
    assert "1 of 3 ranks are stuck since 0.2 s" in str(raised.value)
    assert "--- rank 1, in 'the waiting room'" in str(raised.value)
    assert "in wait_in_vain" in str(raised.value)


def wait_in_vain(event: threading.Event) -> None:
    event.wait(20)


class StuckInOpen(StoreTransport):
    """Looks for no interrupt."""

    released = threading.Event()

    def open(self, context: GroupContext, slot_nbytes: int, *, timeout_s: float) -> None:
        if context.rank == 0:
            self.released.wait(20)


def test_a_transport_that_nothing_can_interrupt_does_not_hang_the_contract() -> None:
    class Impatient(ContractOf):
        scenario_timeout_s = 0.3

    text = Impatient(StuckInOpen).verdict(SLOTS)
    StuckInOpen.released.set()
    assert text is not None
    assert "ranks are stuck since 0.3 s" in text
    assert "--- rank 0, in 'open'" in text
    assert "self.released.wait(20)" in text
