"""Merging per-rank lists as a distributed sampler dealt them out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gather_core import SettingsError, interleave


@given(st.lists(st.integers()), st.integers(1, 8))
def test_what_a_sampler_dealt_out_comes_back_in_order(items: list[int], world_size: int) -> None:
    assert interleave([items[rank::world_size] for rank in range(world_size)]) == items


@given(st.lists(st.integers(), min_size=1), st.integers(1, 8))
def test_padding_at_the_end_is_cut_off(items: list[int], world_size: int) -> None:
    padded = items + items[:1] * (-len(items) % world_size)
    parts = [padded[rank::world_size] for rank in range(world_size)]
    assert interleave(parts, total=len(items)) == items


@pytest.mark.parametrize("parts", [[], [[]], [[], [], []]])
def test_nothing_merges_to_nothing(parts: list[list[int]]) -> None:
    assert interleave(parts) == []


def test_none_is_an_item_like_any_other() -> None:
    parts: list[list[int | None]] = [[None, 1], [None]]
    assert interleave(parts) == [None, None, 1]


def test_total_of_none_keeps_all_and_zero_keeps_nothing() -> None:
    assert interleave([[1], [2]]) == [1, 2]
    assert interleave([[1], [2]], total=0) == []


@pytest.mark.parametrize("total", [-1, -100])
def test_a_negative_total_is_refused_and_cuts_nothing_off(total: int) -> None:
    with pytest.raises(SettingsError, match=f"total must be at least 0 or None, not {total}"):
        interleave([[1, 3], [2, 4]], total)
