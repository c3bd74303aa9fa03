"""The messages of docs/how-to/troubleshooting.md are those that the code has."""

import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gather_core import Gatherer
from gather_transports.threads import ThreadGroup, ThreadRank
from message_templates import is_produced, pattern, templates
from thread_gatherers import caught

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "troubleshooting.md"
HEADINGS = re.findall(r"^### `(.*)`$", PAGE.read_text(), re.MULTILINE)
Body = Callable[[Gatherer], object]


def messages(body: Body, settings: Callable[[int], dict[str, Any]] = lambda rank: {}) -> list[str]:
    """What each of two ranks is told by what it raises."""

    def run_rank(member: ThreadRank) -> str:
        def construct_and_call() -> None:
            with Gatherer(transport="threads", group=member, **{"timeout_s": 10, **settings(member.rank)}) as gatherer:
                body(gatherer)

        return str(caught(construct_and_call))

    outcomes = ThreadGroup(2).run(run_rank)
    assert all(isinstance(outcome, str) for outcome in outcomes), outcomes
    return [str(outcome) for outcome in outcomes]


def gathering(obj: object, **settings: Any) -> list[str]:
    return messages(lambda gatherer: gatherer.all_gather(obj), lambda rank: settings)


def with_other_slots() -> list[str]:
    return messages(lambda gatherer: None, lambda rank: {"slot_nbytes": 2048 * (1 + rank)})


def one_rank_late() -> list[str]:
    """The second rank stays away until the first has given up."""
    given_up = threading.Event()

    def body(gatherer: Gatherer) -> object:
        if gatherer.rank == 1:
            given_up.wait(10)
            return gatherer.all_gather(1)
        try:
            return gatherer.all_gather(0, timeout_s=0.2)
        finally:
            given_up.set()

    return messages(body)


def at_different_operations() -> list[str]:
    return messages(lambda gatherer: gatherer.gather(0, dst=gatherer.rank))


def one_rank_leaves() -> list[str]:
    def body(gatherer: Gatherer) -> object:
        if gatherer.rank == 1:
            raise ValueError("no data")
        return gatherer.all_gather(0)

    return messages(body)[:1]


def broken_before() -> list[str]:
    def body(gatherer: Gatherer) -> object:
        caught(gatherer.gather, 0, gatherer.rank)
        return gatherer.all_gather(0)

    return messages(body)


def in_run() -> list[str]:
    def fail() -> None:
        raise ValueError("no data")

    return messages(lambda gatherer: gatherer.run(fail))


def closed() -> list[str]:
    def body(gatherer: Gatherer) -> object:
        gatherer.close()
        return gatherer.all_gather(0)

    return messages(body)


class Undecodable:
    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("no number",))


def code_forbidden() -> list[str]:
    os.environ["GATHER_FORBID_CODE"] = "1"
    return [str(caught(Gatherer))]


RAISED: dict[str, Callable[[], list[str]]] = {
    "rank … could not set up: …": with_other_slots,
    "… is …, but rank … has …": with_other_slots,
    "no codec is named ….": lambda: [str(caught(Gatherer, "pickel"))],
    "unknown key … = …": lambda: [str(caught(Gatherer.from_settings, {"slots": 1}))],
    "can execute code while it decodes, which GATHER_FORBID_CODE forbids": code_forbidden,
    "rank … could not take part: …": lambda: gathering(lambda: 0),
    "codec … cannot encode this …": lambda: gathering(threading.Lock()),
    "msgpack cannot encode …: it keeps no … like this one exactly": lambda: gathering([Undecodable()], codec="msgpack"),
    "raw takes …, and not this …": lambda: gathering({}, codec="raw"),
    "slots of … bytes are too small: …": lambda: gathering(bytes(20_000), overflow="error"),
    "codec … cannot decode the object of rank …": lambda: gathering(Undecodable()),
    "rank … raised in run(): …": in_run,
    "rank … handed in other metrics: …": lambda: messages(lambda one: one.reduce({"loss": 0.3} if one.rank else {})),
    "rank … could not decode: …": lambda: messages(lambda one: one.all_gather(Undecodable(), confirm=True)),
    "… must be a group rank from 0 to …, not …": lambda: messages(lambda gatherer: gatherer.gather(0, dst=2)),
    "differ in the operation, or in its dst, src or tag": at_different_operations,
    "rank … aborted: …": one_rank_leaves,
    "the group is broken since: …": broken_before,
    "this Gatherer is closed": closed,
}


@pytest.fixture(autouse=True)
def environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATHER_FORBID_CODE", "0")


@pytest.mark.parametrize("heading", RAISED)
def test_an_important_message_is_raised_as_the_page_has_it(heading: str) -> None:
    assert heading in HEADINGS
    for message in RAISED[heading]():
        assert pattern(heading).search(message), message


def test_a_late_rank_is_told_of_as_the_page_has_it() -> None:
    first, second = one_rank_late()
    assert pattern("did not come within … s").search(first)
    assert pattern("rank … never entered …").search(first)
    assert pattern("rank … aborted: …").search(second)


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_message_of_the_page_is_one_that_the_code_has(heading: str) -> None:
    assert heading in RAISED or is_produced(heading, templates())


def test_a_message_that_no_code_has_is_noticed() -> None:
    produced = partial(is_produced, texts=templates())
    assert produced("did not come within … s")
    assert not produced("did never come within … s")
    assert not produced("s did not come within …")
    assert not produced("rank …")
    assert pattern("rank … aborted: …").search("rank 3 aborted: ValueError")
    assert not pattern("rank … aborted: …").search("rank 3 left: ValueError")


def test_no_message_is_on_the_page_twice() -> None:
    assert len(set(HEADINGS)) == len(HEADINGS) > 40
