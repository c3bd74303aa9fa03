"""Areas on loan where a process forks: what parent and child would share is copied before, and returned."""

import os
from collections.abc import Callable

import pytest

from gather_transports import shared_mapping, shm_loans
from gather_transports.owned_descriptor import Descriptor
from gather_transports.shared_file import create_file
from gather_transports.shm_control import NUM_AREAS
from loan_pair import Pair
from shm_ranks import new_file

pytest_plugins = ["loan_fixture"]


@pytest.mark.parametrize("has_populate", [True, False])
@pytest.mark.fault(53)
def test_what_a_fork_would_share_is_copied_and_returned(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, has_populate: bool
) -> None:
    if not has_populate:
        monkeypatch.setattr(shared_mapping, "_advise", lambda *_: -1)
    extents = [pair.hand_over(1), pair.hand_over(2)]
    first, second = (pair.borrow(extent) for extent in extents)
    first[:3] = b"own"
    child = os.fork()
    if child == 0:
        wrong = [bytes(first[:4]) != b"own\1", second[-1] != 2]
        del first, second
        os._exit(sum(wrong))
    assert not any(pair.lender.is_lent(extent.area) for extent in extents)
    pair.hand_over(3)
    pair.hand_over(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (bytes(first[:4]), second[-1]) == (b"own\1", 2)
    del first, second
    loan = pair.hand_over(5)
    kept = pair.borrow(loan)
    assert pair.lender.is_lent(loan.area), "no token was given twice"
    assert kept[0] == 5


@pytest.mark.fault(53)
def test_a_fork_after_everything_else_is_gone_copies_and_harms_nothing() -> None:
    file = Descriptor(create_file(""))
    with new_file() as fd:
        pair = Pair(file, fd)
        kept = pair.borrow(pair.hand_over(1))
    file.close()
    del pair
    child = os.fork()
    if child == 0:
        os._exit(kept[-1])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert kept[-1] == 1


def in_between(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Does it once, in the middle of what comes before a fork."""
    make_private = shared_mapping.make_private
    actions = [action]

    def interrupted(view: memoryview) -> None:
        if actions:
            actions.pop()()
        make_private(view)

    monkeypatch.setattr(shm_loans, "make_private", interrupted)


def test_nothing_is_borrowed_while_a_thread_forks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = pair.borrow(pair.hand_over(1))
    refused: list[bool] = []

    def borrow_too() -> None:
        extent = pair.hand_over(2)
        with pytest.raises(OSError, match="a thread of this process forks"):
            pair.borrow(extent)
        refused.append(pair.lender.is_lent(extent.area))
        pair.give_token(extent)

    in_between(monkeypatch, borrow_too)
    shm_loans._return_all()
    shm_loans._have_forked()
    assert refused == [True], "no token was given"
    assert not any(pair.lender.is_lent(area) for area in range(NUM_AREAS))
    assert kept[-1] == 1
    assert pair.borrow(pair.hand_over(3))[-1] == 3


def test_what_is_borrowed_when_a_thread_begins_to_fork_is_kept_or_refused_and_never_both(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BeginsAtTheFirstLook(dict[int, bool]):
        """Of threads that fork: one, which is done with all that is borrowed when it is asked for."""

        def __bool__(self) -> bool:
            shm_loans._return_all()
            return True

    extent = pair.hand_over(1)
    with monkeypatch.context() as patch:
        patch.setattr(shm_loans, "_forking", BeginsAtTheFirstLook())
        kept = pair.borrow(extent)
    assert not pair.lender.is_lent(extent.area)
    again = pair.borrow(pair.hand_over(2))
    assert pair.lender.is_lent(extent.area), "the token was given once"
    assert (kept[-1], again[-1]) == (1, 2)


def test_a_thread_that_forks_too_waits_until_all_is_copied(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    extent = pair.hand_over(1)
    kept = pair.borrow(extent)
    in_between(monkeypatch, shm_loans._return_all)
    shm_loans._return_all()
    shm_loans._have_forked()
    assert not pair.lender.is_lent(extent.area)
    again = pair.borrow(pair.hand_over(2))
    assert pair.lender.is_lent(extent.area), "the token was given once"
    assert (kept[-1], again[-1]) == (1, 2)


@pytest.mark.fault(53)
def test_a_signal_before_a_fork_leaves_nothing_that_is_shared(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [pair.borrow(pair.hand_over(number)) for number in range(3)]

    def interrupt() -> None:
        raise KeyboardInterrupt

    in_between(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        shm_loans._return_all()
    shm_loans._have_forked()
    assert not any(pair.lender.is_lent(area) for area in range(NUM_AREAS))
    for number in range(3):
        pair.hand_over(100 + number)
    assert [view[-1] for view in kept] == [0, 1, 2]


def test_a_token_is_given_once_whoever_still_refers_to_the_loan(pair: Pair) -> None:
    extent = pair.hand_over(1)
    kept = pair.borrow(extent)
    references = list(shm_loans._loans.values())
    shm_loans._return_all()
    shm_loans._have_forked()
    assert not pair.lender.is_lent(extent.area)
    next_loan = pair.borrow(pair.hand_over(2))
    del kept
    assert pair.lender.is_lent(extent.area)
    assert next_loan[-1] == 2
    assert references
