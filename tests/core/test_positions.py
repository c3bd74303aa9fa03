"""What an error says of ranks that are elsewhere: who never came, who is behind, and at which operation and tag."""

import threading
from collections.abc import Sequence

import pytest

from gather_core import Capabilities, Codec, Frames, Gatherer, TransportTimeoutError
from gather_core.positions import Answers, Position, as_told, explain
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport
from store_calls import store_calls
from thread_gatherers import caught, on_gatherers

TIMEOUT = TransportTimeoutError("not all came")
OWN: Position = (42, "all_gather", "val_preds", "round 1")
IN_ROUND_2: Position = (*OWN[:3], "round 2")
NEVER = "rank 3 never entered all_gather #42 'val_preds' "


def report_of(position: Position, own: Position = OWN) -> tuple[str, list[int]]:
    """What this rank, 0, hears of rank 3, and whether that is behind."""
    positions = dict.fromkeys(range(3), own) | {3: position}
    report = explain(TIMEOUT, own, Answers(positions, cut_short=""), 4)
    assert report.silent == []
    return report.text.partition(": not all came")[2].removeprefix("; "), report.behind


@pytest.mark.parametrize(
    ("position", "text"),
    [
        ((41, "all_gather", "train_loss", "done"), NEVER + "(it is at #41 'train_loss')"),
        ((41, "all_gather", "train_loss", "round 2"), NEVER + "(it is still in #41 'train_loss', round 2)"),
        ((41, "gather", "", "decode"), NEVER + "(it is still in gather #41, decoding)"),
        ((41, "run", "", "function"), NEVER + "(it is still running the function given to run #41)"),
        ((41, "all_gather", "train_loss", "closed"), NEVER + "(it closed its Gatherer after #41 'train_loss'); "),
        ((41, "gather", "", "closed within"), NEVER + "(it closed its Gatherer in the middle of gather #41)"),
        ((0, "", "", "done"), NEVER + "(it has called nothing yet)"),
        ((0, "", "", "closed"), NEVER + "(it has called nothing and closed its Gatherer); "),
        ((42, "all_gather", "train_loss", "round 1"), NEVER + "(it is in #42 'train_loss', round 1)"),
        ((42, "gather", "val_preds", "encode"), NEVER + "(it is in gather #42 'val_preds', encoding)"),
        ((*OWN[:3], "encode"), "rank 3 is still encoding"),
    ],
)
def test_a_rank_that_is_behind_is_named_with_where_it_is(position: Position, text: str) -> None:
    said, behind = report_of(position)
    assert said.startswith(text) if text.endswith("; ") else said == text
    assert behind == [3]


def test_in_round_2_a_rank_that_is_still_in_round_1_is_behind() -> None:
    assert report_of(OWN, IN_ROUND_2) == ("rank 3 is still in round 1", [3])
    report = explain(TIMEOUT, IN_ROUND_2, Answers({}, cut_short=""), 2)
    assert report.text.startswith("all_gather #42 'val_preds', round 2: not all came")


@pytest.mark.parametrize(
    ("position", "text"),
    [
        ((43, "all_gather", "val_preds", "round 1"), "rank 3 is ahead (it is in #43 'val_preds', round 1)"),
        ((43, "run", "", "function"), "rank 3 is ahead (it is still running the function given to run #43)"),
        ((*OWN[:3], "done"), "rank 3 is ahead (it is done with #42 'val_preds')"),
        ((*OWN[:3], "closed"), "rank 3 is ahead (it closed its Gatherer after #42 'val_preds'); "),
        ((*OWN[:3], "closed within"), "rank 3 closed its Gatherer in the middle of it"),
        (OWN, ""),
        (IN_ROUND_2, ""),
        ((*OWN[:3], "decode"), ""),
    ],
)
def test_a_rank_that_is_as_far_or_farther_is_not_behind(position: Position, text: str) -> None:
    said, behind = report_of(position)
    assert said.startswith(text) if text.endswith("; ") else said == text
    assert behind == []


def test_ranks_at_one_place_share_a_line_however_many_they_are() -> None:
    late: Position = (41, "all_gather", "train_loss", "done")
    positions = {0: OWN} | dict.fromkeys(range(1, 1000), late) | {500: (0, "", "", "done")}
    report = explain(TIMEOUT, OWN, Answers(positions, cut_short=""), 1001)
    assert report.text == (
        "all_gather #42 'val_preds': not all came; no sign of life from rank 1000; "
        "ranks 1-499, 501-999 never entered all_gather #42 'val_preds' (they are at #41 'train_loss'); "
        "rank 500 never entered all_gather #42 'val_preds' (it has called nothing yet)"
    )
    assert report.behind == list(range(1, 1000))
    assert report.silent == [1000]


def test_a_rank_that_the_transport_misses_is_late_though_it_is_in_the_same_round() -> None:
    timeout = TransportTimeoutError("rank 1 is late", (1, 2, 3))
    answers = Answers({0: OWN, 1: OWN, 2: (43, "barrier", "", "round 1")}, cut_short="")
    report = explain(timeout, OWN, answers, 4)
    assert "rank 1 is in it too, but late" in report.text
    assert (report.silent, report.behind) == ([3], [1])


def test_where_nobody_can_be_asked_the_missing_are_those_that_the_transport_names() -> None:
    timeout = TransportTimeoutError("rank 2 is late", (2,))
    report = explain(timeout, OWN, Answers({0: OWN}, cut_short="the store is gone"), 4)
    assert (report.silent, report.behind) == ([2], [])
    assert "where ranks 1-3 may be is not known, as the store is gone" in report.text


def test_a_tag_that_is_none_or_too_long_is_told_shortly() -> None:
    assert as_told((1, "run", 5, "done")) == (1, "run", "", "done")  # type: ignore[arg-type]
    assert len(as_told((1, "run", "x" * 10_000, "done"))[2]) == 256


class SlowCodec(Codec):
    """Waits, on the ranks that have a `go`, before it encodes or decodes."""

    name = "slow-in-test"

    def __init__(self, go: threading.Event | None, *, slow_to: str) -> None:
        self._go = go
        self._slow_to = slow_to

    def encode(self, obj: object) -> Frames:
        self._wait("encode")
        return [repr(obj).encode()]

    def decode(self, frames: Sequence[memoryview], options: object = None) -> object:
        self._wait("decode")
        return bytes(frames[0]).decode()

    def _wait(self, what: str) -> None:
        if self._go is not None and what == self._slow_to:
            self._go.wait(10)


@pytest.mark.parametrize(
    ("slow_to", "text"),
    [
        ("encode", "rank 1 is still encoding"),
        ("decode", "rank 1 never entered all_gather #2 'val_preds' (it is still in #1 'train_loss', decoding)"),
    ],
)
def test_a_rank_whose_codec_is_slow_is_named_as_such(slow_to: str, text: str) -> None:
    go = threading.Event()

    def body(member: ThreadRank) -> object:
        codec = SlowCodec(go if member.rank == 1 else None, slow_to=slow_to)
        with Gatherer(codec, "threads", group=member, timeout_s=10) as gatherer:
            if slow_to == "decode":
                gatherer.all_gather(0, tag="train_loss")
            exc = caught(lambda: gatherer.all_gather(1, tag="val_preds", timeout_s=0.3 if member.rank == 0 else 10))
            go.set()
            return exc

    exc, _ = ThreadGroup(2).run(body)
    assert isinstance(exc, TransportTimeoutError)
    assert (exc.missing, exc.behind) == ((), (1,))
    assert text in str(exc)


class ChunkedTransport(ThreadsTransport):
    """Sends in round 2 what is larger than a slot, and waits before that on the ranks that have a `go`."""

    capabilities = Capabilities(locality="process", elastic_slots=False)

    def __init__(self, go: threading.Event | None) -> None:
        super().__init__()
        self._go = go

    def all_gather_exact(
        self,
        parts: Sequence[memoryview],
        nbytes_per_rank: Sequence[int],
        *,
        into: Sequence[memoryview],
        timeout_s: float,
    ) -> Sequence[memoryview]:
        if self._go is not None:
            self._go.wait(10)
        return super().all_gather_exact(parts, nbytes_per_rank, into=into, timeout_s=timeout_s)


def test_a_rank_that_is_late_inside_round_2_is_named_with_operation_and_tag() -> None:
    go = threading.Event()

    def body(member: ThreadRank) -> object:
        transport = ChunkedTransport(go if member.rank == 1 else None)
        with Gatherer("pickle", transport, group=member, timeout_s=10, slot_nbytes=1024) as gatherer:
            exc = caught(lambda: gatherer.all_gather(bytes(5000), tag="big", timeout_s=0.3))
            go.set()
            return exc

    exc, _ = ThreadGroup(2).run(body)
    assert isinstance(exc, TransportTimeoutError)
    assert str(exc).startswith("all_gather #1 'big', round 2: rank 1 did not come within 0.")
    assert str(exc).endswith("; rank 1 is in it too, but late")
    assert (exc.missing, exc.behind) == ((), (1,))


def test_the_store_is_asked_and_told_nothing_until_somebody_times_out() -> None:
    together = threading.Barrier(2)
    counts: list[int] = []

    def count() -> None:
        together.wait(10)
        if together.wait(10) == 0:
            counts.append(len(calls))
        together.wait(10)

    def body(gatherer: Gatherer) -> None:
        count()
        for step in range(20):
            gatherer.all_gather(bytes(50_000 * (step % 3)), tag="x")
            gatherer.run(lambda: 1)
        count()
        if gatherer.rank == 0:
            caught(lambda: gatherer.all_gather(0, timeout_s=0.2))
        count()

    with store_calls() as calls:
        on_gatherers(2, body)
    before, healthy, timed_out = counts
    assert before == healthy < timed_out
