"""The command behind `make soak`: some episodes are right, and what goes wrong in one is found."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gather_core import Gatherer
from gather_transports.threads import ThreadGroup, ThreadRank
from rank_pool import RankPool
from soak import __main__ as command
from soak.operations import is_same, operations
from soak.parent import JUDGED_FROM, MOST_GROWTH_NBYTES, Soak, Tally
from soak.planted import OfEachRank
from soak.script import episode

SECONDS = 5
CALM = replace(episode(0), transport="shm", codec="pickle", disturbance="none", num_operations=3, timeout_s=30.0)


@pytest.fixture
def soak(pool: RankPool) -> Soak:
    return Soak(pool)


def test_the_command_soaks_for_a_time_and_reports(
    pool: RankPool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RankPool", lambda: pool)
    monkeypatch.setattr(pool, "close", list)
    assert command.main(["--seconds", str(SECONDS), "--seed", "3", "--episodes", "3"]) == 0
    assert "0 wrong, 0 hangs, 0 leftovers" in capsys.readouterr().out


def test_a_killed_rank_ends_an_episode_and_is_no_fault(soak: Soak) -> None:
    soak.live_through(replace(CALM, disturbance="kill", victim=3, after_s=0.0, num_operations=1000, timeout_s=3.0))
    assert (soak.tally.num_kills, soak.tally.num_failed) == (1, 1)
    assert soak.tally.is_good, soak.tally


def test_a_stop_that_outlasts_the_timeout_where_none_may_is_a_fault(soak: Soak) -> None:
    planned = replace(CALM, disturbance="short stop", after_s=0.0, stopped_s=2.0, timeout_s=0.3, num_operations=1000)
    soak.live_through(planned)
    assert re.search("SetupError|TransportTimeoutError", "".join(soak.tally.wrong))
    assert not soak.tally.is_good


def test_another_result_than_the_right_one_is_a_fault(soak: Soak) -> None:
    soak.live_through(replace(CALM, codec="raw", seed=OfEachRank(1), num_operations=20))
    assert "WrongResultError" in "".join(soak.tally.wrong)


@pytest.mark.parametrize("codec", ["pickle", "raw"])
def test_every_operation_of_an_episode_returns_what_it_says(codec: str) -> None:
    planned = replace(CALM, codec=codec, num_operations=25, slot_nbytes=1024)

    def run_rank(member: ThreadRank) -> list[str]:
        with Gatherer(codec, "threads", group=member, timeout_s=30) as gatherer:
            made = operations(planned, 3)
            return [one.name for one in made if not is_same(one.call(gatherer), one.expected(member.rank))]

    assert ThreadGroup(3).run(run_rank) == [[]] * 3


def test_an_episode_depends_on_nothing_but_its_seed() -> None:
    assert episode(5) == episode(5) != episode(6)
    assert [one.name for one in operations(episode(5), 4)] == [one.name for one in operations(episode(5), 4)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.zeros(2, np.int32), np.zeros(2, np.int64)),
        (np.zeros(2, np.int64), np.ones(2, np.int64)),
        ([0, 0], np.zeros(2, np.int64)),
        ([1, 2], [1, 2, 3]),
        ((1, 2), [1, 2]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        (None, [None]),
    ],
    ids=str,
)
def test_results_that_differ_are_not_the_same(found: Any, expected: Any) -> None:
    assert not is_same(found, expected)
    assert is_same(expected, expected)


def test_memory_that_grows_in_the_second_half_of_a_life_is_a_fault() -> None:
    half = JUDGED_FROM // 2
    flat, growing, young = Tally(), Tally(), Tally()
    flat.resident_nbytes = {1: [0] * (half - 1) + [100 << 20] * (half + 1)}
    growing.resident_nbytes = {1: [0] * (half + 5) + [MOST_GROWTH_NBYTES + 1] * half}
    young.resident_nbytes = {1: [0] * 10 + [100 << 20] * 10}
    assert flat.is_good
    assert young.is_good
    assert not growing.is_good
