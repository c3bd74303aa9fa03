"""What a Gatherer tells of its operations: stats, the profiler's ranges, the log."""

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gather_core import Gatherer, GroupStats, Stats
from gather_core.stats import TagStats
from gather_transports.threads import ThreadsTransport
from thread_gatherers import FixedSlots, caught, on_gatherers


def test_nothing_is_recorded_until_somebody_asks() -> None:
    with Gatherer() as gatherer:
        gatherer.all_gather(1, tag="loss")
        assert (gatherer.stats.operations, gatherer.stats.per_tag) == (1, [])
        gatherer.stats.is_recording = True
        gatherer.all_gather(1, tag="loss")
        gatherer.stats.is_recording = False
        gatherer.all_gather(1, tag="loss")
        assert [(e.operation, e.tag, e.operations) for e in gatherer.stats.per_tag] == [("all_gather", "loss", 1)]


@pytest.mark.parametrize("make_transport", [ThreadsTransport, FixedSlots])
def test_each_operation_and_tag_has_its_numbers(make_transport: type[ThreadsTransport]) -> None:
    def body(gatherer: Gatherer) -> Stats:
        gatherer.stats.is_recording = True
        for number in range(3):
            gatherer.all_gather(number, tag="loss")
        gatherer.all_gather(np.zeros(5000), tag="array")
        gatherer.all_gather(0)
        gatherer.all_to_all([bytes(3000)] * 2)
        gatherer.barrier()
        return gatherer.stats

    has_round_2 = make_transport is FixedSlots
    for stats in on_gatherers(2, body, make_transport, slot_nbytes=2048):
        loss, array, untagged, routed, barrier = stats.per_tag
        assert [(e.operation, e.tag, e.operations) for e in stats.per_tag] == [
            ("all_gather", "loss", 3),
            ("all_gather", "array", 1),
            ("all_gather", "", 1),
            ("all_to_all", "", 1),
            ("barrier", "", 1),
        ]
        assert (loss.nbytes, untagged.nbytes, barrier.nbytes) == (3 * 192, 192, 64)
        assert 0 < loss.padding_nbytes < 3 * 128
        assert 40_000 < array.nbytes < 41_000
        assert 6000 < routed.nbytes < 7000
        assert 0 < routed.padding_nbytes < 700
        assert [entry.second_rounds for entry in stats.per_tag] == [0, has_round_2, 0, has_round_2, 0]
        assert (array.round_2_s > 0) == has_round_2
        assert all(entry.encode_s > 0 and entry.round_1_s > 0 and entry.decode_s > 0 for entry in stats.per_tag)
        assert sum(entry.nbytes for entry in stats.per_tag) == stats.sent_nbytes


def test_what_fails_counts_for_nothing() -> None:
    def body(gatherer: Gatherer) -> object:
        gatherer.stats.is_recording = True
        caught(lambda: gatherer.all_gather((lambda: None) if gatherer.rank else 0, tag="bad"))
        gatherer.all_gather(0, tag="good")
        return [(entry.tag, entry.operations) for entry in gatherer.stats.per_tag]

    assert on_gatherers(2, body) == [[("good", 1)]] * 2


def of_rank(round_1_s: float) -> Stats:
    entry = TagStats("all_gather", "loss", operations=10, nbytes=1000, round_1_s=round_1_s, decode_s=0.1)
    return Stats(operations=10, per_tag=[entry])


def test_who_waits_least_is_the_slowest() -> None:
    (row,) = GroupStats([of_rank(0.5), of_rank(0.1), of_rank(0.3)]).rows()
    assert (row["operation"], row["tag"], row["operations"], row["nbytes"]) == ("all_gather", "loss", 10, 3000)
    assert row["slowest_rank"] == 1
    assert row["transfer_s"] == pytest.approx(0.01)
    assert row["wait_s"] == pytest.approx((0.04 + 0.02) / 2)
    assert row["longest_wait_s"] == pytest.approx(0.04)
    assert row["decode_s"] == pytest.approx(0.01)


def test_all_ranks_get_the_stats_of_all() -> None:
    def body(gatherer: Gatherer) -> GroupStats:
        gatherer.stats.is_recording = True
        gatherer.all_gather(0, tag="loss")
        if gatherer.rank == 1:
            gatherer.stats.per_tag.append(TagStats("gather", "only here", operations=1, nbytes=5))
        return gatherer.gather_stats()

    first, second = on_gatherers(2, body)
    assert first == second
    assert [row["tag"] for row in first.rows()] == ["loss", "only here"]
    assert json.loads(first.to_json())["rows"] == first.rows()


def test_a_codec_that_takes_few_objects_does_not_matter_to_stats() -> None:
    with Gatherer("raw") as gatherer:
        gatherer.stats.is_recording = True
        gatherer.all_gather(b"bytes")
        assert gatherer.gather_stats().rows()[0]["operations"] == 1


def test_tables_are_aligned_and_say_what_one_rank_can_know() -> None:
    table = str(GroupStats([of_rank(0.5), of_rank(0.1)]))
    titles, line = table.splitlines()
    words = "operation count bytes padding 2nd rounds encode ms wait ms transfer ms decode ms slowest"
    assert " ".join(titles.split()) == words
    assert " ".join(line.split()) == "all_gather 'loss' 10 2000 0 0 0.000 40.000 10.000 10.000 rank 1"
    assert len(line) == len(titles.rstrip())
    alone = str(of_rank(0.5))
    assert "rank" not in alone
    assert "50.000" in alone
    assert json.loads(of_rank(0.5).to_json())["per_tag"][0]["nbytes"] == 1000


def test_operations_are_ranges_in_torchs_profiler() -> None:
    with Gatherer() as gatherer, torch.profiler.profile() as profile:
        gatherer.all_gather(1)
        caught(lambda: gatherer.all_gather(lambda: None))
    names = [event.name for event in profile.events() or [] if event.name.startswith("gather_core::")]
    phases = ["encode", "round 1", "decode", "encode", "round 1"]
    assert names == [f"gather_core::all_gather/{phase}" for phase in phases]


def test_the_log_has_a_line_for_each_operation_with_rank_and_group(caplog: pytest.LogCaptureFixture) -> None:
    def lines(call: Callable[[Gatherer], Any]) -> list[str]:
        caplog.clear()
        with Gatherer() as gatherer:
            caught_or_not = [call(gatherer)]
        assert caught_or_not
        return [record.getMessage() for record in caplog.records if record.name == "gather_core"]

    assert lines(lambda gatherer: gatherer.all_gather(1)) == []
    caplog.set_level(logging.DEBUG, "gather_core")
    (line,) = lines(lambda gatherer: gatherer.all_gather(1, tag="loss"))
    assert line.startswith("rank 0 of single/")
    assert "all_gather #1 'loss' sent 192 bytes: encode" in line
    (line,) = lines(lambda gatherer: caught(lambda: gatherer.all_gather(lambda: None)))
    assert line.endswith("all_gather #1 failed: RemoteEncodeError")


def test_a_tag_per_step_costs_no_more_in_the_last_step_than_in_the_first() -> None:
    class CountedTag(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            CountedTag.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    stats = Stats()
    for step in range(1000):
        stats.of("all_gather", CountedTag(f"step {step}"))
    CountedTag.compared = 0
    assert stats.of("all_gather", "step 999") is stats.per_tag[999]
    assert CountedTag.compared < 100
    of_all = GroupStats.from_json([stats.to_json().encode()] * 2)
    assert [stats.per_tag for stats in of_all.ranks] == [stats.per_tag] * 2
