"""Where `gather bench` says that the time of a call goes, and how much memory it takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gather_bench import resident
from gather_bench.bench.results import Split
from gather_bench.bench.split import Lap, Stopwatch, split_of
from rank_pool import RankPool

_MIB = 1 << 20


class _Medium:
    """A transport whose second verb goes through its first, and whose time is a list of moments."""

    def all_gather_slots(self) -> str:
        return "slots"

    def all_gather_exact(self) -> str:
        return self.all_gather_slots() + " again"


def _clock(*moments: float) -> Any:
    left = list(moments)
    return lambda: left.pop(0)


def test_a_verb_that_goes_through_another_counts_once_and_all_the_rest_is_encode_or_decode() -> None:
    medium = _Medium()
    watch = Stopwatch(_clock(0, 1, 3, 4, 9, 9.5))
    with watch.worn_by(medium, ("all_gather_slots", "all_gather_exact")):
        lap = watch.lap(lambda: [medium.all_gather_slots(), medium.all_gather_exact()])
    assert lap == Lap(encode_s=1, entered=1, first_exchange_s=2, inside_s=2 + 5, decode_s=1.5)
    assert not vars(medium), "the stopwatch was left on"


def test_one_ranks_encode_is_the_wait_of_the_others() -> None:
    slow = [Lap(encode_s=9, entered=number + 9, first_exchange_s=1, inside_s=2, decode_s=3) for number in range(3)]
    quick = [Lap(encode_s=1, entered=number + 1, first_exchange_s=9, inside_s=10, decode_s=3) for number in range(3)]
    assert split_of([slow, quick], has_one_clock=True) == Split(encode=5, wait=4, transfer=2, decode=3)


def test_on_several_hosts_wait_is_not_told_from_transfer() -> None:
    laps = [[Lap(1, entered, 4, 4, 1)] for entered in (1.0, 1000.0)]
    assert split_of(laps, has_one_clock=False) == Split(encode=1, wait=None, transfer=4, decode=1)


@pytest.mark.parametrize("entered", [0.0, 100.0])
def test_no_rank_waits_longer_than_it_was_in_the_exchange(entered: float) -> None:
    laps: Sequence[Sequence[Lap]] = [[Lap(1, entered, 4, 4, 1)], [Lap(1, 50, 4, 4, 1)]]
    split = split_of(laps, has_one_clock=True)
    assert (split.wait, split.transfer) == (2, 2)


def test_rows_of_gatherers_are_split_and_all_that_are_measured_say_what_memory_they_took(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        from gather_bench.bench.cases import opened_cases
        from gather_bench.bench.measure import run_cases
        from gather_bench.bench.options import Options
        from gather_bench.bench.payloads import payload

        with opened_cases(Options(("raw",), ("gloo",)), "local") as cases:
            chosen = [case for case in cases if case.way in ("gatherer", "raw_copy")]
            return run_cases(chosen, {"skewed": payload("skewed:4MiB,64")}, rounds=1, calls=1)

    first, second = pool.values(2, body)
    assert first == second
    ours, peer = first
    assert peer.split is None
    assert min(ours.split.encode, ours.split.wait, ours.split.transfer, ours.split.decode) >= 0
    assert ours.split.encode + ours.split.transfer + ours.split.decode > 0
    assert 4 * _MIB < ours.encoded_nbytes < ours.received_nbytes - 64 < 4 * _MIB + 64
    assert ours.encoded_nbytes + 64 < ours.fitting_slot_nbytes < ours.encoded_nbytes + 256
    if resident.CLEAR_REFS.exists():
        assert ours.peak_nbytes > 3 * _MIB, "the object that arrives"
        assert peer.peak_nbytes < 3 * _MIB, "it copies into memory that it has"


@pytest.mark.skipif(not resident.CLEAR_REFS.exists(), reason="the system does not tell")
def test_the_peak_is_that_of_the_step_also_where_nothing_is_left_of_it() -> None:
    def step() -> None:
        np.ones(32 * _MIB, np.uint8)

    risen = resident.peak_above_before(step)
    assert risen is not None
    assert 30 * _MIB < risen < 40 * _MIB


def test_where_the_system_does_not_tell_the_peak_the_step_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    steps = []
    monkeypatch.setattr(resident, "CLEAR_REFS", tmp_path / "no_such_folder" / "clear_refs")
    assert resident.peak_above_before(lambda: steps.append(1)) is None
    assert steps == [1]
